#include "glimpse/serve/client_video.h"

#include <algorithm>
#include <atomic>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/frame_folder.h"
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
class TimedBytes final : public detail::InMemory<std::string> {
 public:
  TimedBytes(std::string bytes, std::shared_ptr<const Clock> clock)
      : InMemory(std::move(bytes)), clock_(std::move(clock)) {}
  int64_t read(int64_t offset, std::span<uint8_t> to) const noexcept override {
    return clock_->runs() ? InMemory::read(offset, to) : -1;
  }

 private:
  const std::shared_ptr<const Clock> clock_;
};

std::shared_ptr<const VideoSource> video_of_files(std::vector<std::string> files, int64_t max_pixels) {
  const auto frame_name = [](int64_t i) { return concat(kName, ": frame ", i); };
  const int64_t count = std::ssize(files);
  return detail::video_of_pictures(
      kName, count, frame_name, [files = std::move(files), frame_name, max_pixels](int64_t i) {
        DecodeOptions options;
        options.max_pixels = max_pixels;
        const std::string& file = files[static_cast<size_t>(i)];
        return decode_image({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, frame_name(i),
                            options);
      });
}

// At most 256 pixels wide and high.
Image small_of(const Image& frame) {
  constexpr double side = 256;
  const double scale = std::min(1.0, side / std::max(frame.width, frame.height));
  const Size size = scaled(frame, scale);
  return scale < 1 ? resize(frame, size.width, size.height, Filter::bilinear) : frame;
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
      source_(video_of_files(std::move(pictures), clock_->limits.max_pixels)) {}

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
