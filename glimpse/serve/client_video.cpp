#include "glimpse/serve/client_video.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/resize.h"
#include "glimpse/image/video_module.h"
#include "glimpse/image/video_out.h"

namespace glimpse::serve {

using Steady = std::chrono::steady_clock;

struct ClientVideo::Clock {
  const VideoLimits limits;
  std::atomic<Steady::time_point> end;

  explicit Clock(VideoLimits of) : limits(std::move(of)) { begin(); }
  void begin() { end = Steady::now() + limits.time; }
  bool runs() const noexcept { return !limits.stop.stop_requested() && Steady::now() < end.load(); }
  void check_runs() const {
    check_as(Error::Kind::cancelled, !limits.stop.stop_requested(), "nobody waits for the video");
    check(runs(), "video: it takes longer than ", static_cast<double>(limits.time.count()) / 1000,
          " seconds to read; send a shorter or smaller one, or take fewer frames");
  }
  // What goes wrong because the time is over says so.
  template <class Run>
  auto within(const Run& run) const {
    try {
      return run();
    } catch (const Error&) {
      check_runs();
      throw;
    }
  }
};

namespace {

constexpr const char* kName = "video";

// Nothing can be read any more once the time is over: a decoder is asked for bytes again and again, however
// many frames it passes over.
template <class Clock>
class TimedBytes final : public detail::FileBytes {
 public:
  TimedBytes(std::string bytes, std::shared_ptr<const Clock> clock)
      : bytes_(std::move(bytes)), clock_(std::move(clock)) {}
  int64_t size() const override { return std::ssize(bytes_); }
  int64_t read(int64_t offset, std::span<uint8_t> to) const noexcept override {
    if (!clock_->runs()) return -1;
    const int64_t count = std::clamp<int64_t>(size() - offset, 0, std::ssize(to));
    if (count > 0) std::memcpy(to.data(), bytes_.data() + offset, static_cast<size_t>(count));
    return count;
  }

 private:
  const std::string bytes_;
  const std::shared_ptr<const Clock> clock_;
};

// One frame is decoded at a time.
class FrameFiles final : public VideoSource {
 public:
  FrameFiles(std::vector<std::string> files, int64_t max_pixels) : files_(std::move(files)) {
    options_.max_pixels = max_pixels;
    const Image first = decode(0);
    info_ = {std::ssize(files_), 0, first.width, first.height, true};
  }
  const std::string& name() const override { return name_; }
  const VideoInfo& info() const override { return info_; }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t, const Image&)>& take) const override {
    Image image;
    for (size_t i = 0; i < indices.size(); ++i) {
      if (i == 0 || indices[i] != indices[i - 1]) image = decode(indices[i]);
      check(image.width == info_.width && image.height == info_.height, "video: frame ", indices[i], " is ",
            image.width, " x ", image.height, " pixels, the first ", info_.width, " x ", info_.height,
            "; the frames of a video are of one size");
      take(i, image);
    }
  }

 private:
  Image decode(int64_t index) const {
    const std::string& file = files_.at(static_cast<size_t>(index));
    return decode_image({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                        concat("video: frame ", index), options_);
  }

  const std::vector<std::string> files_;
  const std::string name_ = kName;
  DecodeOptions options_;
  VideoInfo info_;
};

// At most 256 pixels wide and high.
Image small_of(const Image& frame) {
  constexpr double side = 256;
  const double scale = std::min(1.0, side / std::max(frame.width, frame.height));
  const auto scaled = [&](int size) { return std::max(1, static_cast<int>(std::lround(size * scale))); };
  return scale < 1 ? resize(frame, scaled(frame.width), scaled(frame.height), Filter::bilinear) : frame;
}

}  // namespace

ClientVideo::ClientVideo(std::string file, VideoLimits limits)
    : clock_(std::make_shared<Clock>(std::move(limits))) {
  source_ = clock_->within([&] {
    return detail::open_video(std::make_shared<TimedBytes<Clock>>(std::move(file), clock_), kName);
  });
}

ClientVideo::ClientVideo(std::vector<std::string> pictures, VideoLimits limits)
    : clock_(std::make_shared<Clock>(std::move(limits))),
      source_(std::make_shared<FrameFiles>(std::move(pictures), clock_->limits.max_pixels)) {}

ClientVideo::~ClientVideo() = default;

const std::string& ClientVideo::name() const {
  return source_->name();
}

void ClientVideo::read(std::span<const int64_t> indices,
                       const std::function<void(size_t, const Image&)>& take) const {
  const std::lock_guard lock(mutex_);
  clock_->begin();
  small_.clear();
  clock_->within([&] {
    source_->read(indices, [&](size_t i, const Image& frame) {
      clock_->check_runs();
      if (i % 2 == 0) small_.push_back(small_of(frame));
      take(i, frame);
    });
  });
}

Image ClientVideo::sheet(std::span<const KeptGrid> slices) const {
  const std::lock_guard lock(mutex_);
  invariant(slices.size() <= small_.size(), "a slice of frames that were not read");
  std::vector<Image> drawn;
  drawn.reserve(slices.size());
  for (size_t i = 0; i < slices.size(); ++i) drawn.push_back(draw_kept(small_[i], slices.subspan(i, 1)));
  constexpr int kColumns = 8;
  return contact_sheet(drawn, kColumns);
}

}  // namespace glimpse::serve
