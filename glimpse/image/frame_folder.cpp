#include "glimpse/image/frame_folder.h"

#include <algorithm>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/base/file_kinds.h"
#include "glimpse/image/decode.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/// The digits at the front of `text`, without leading zeros, taken away from it.
std::string_view take_number(std::string_view& text) {
  size_t end = 0;
  while (end < text.size() && is_digit(text[end])) ++end;
  std::string_view digits = text.substr(0, end);
  text.remove_prefix(end);
  digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size()));
  return digits;
}

/// By its name; what else lies in a folder (lists, thumbnails of a file manager) is left alone.
bool is_picture(const fs::path& path) {
  return !path.filename().string().starts_with('.') && has_ending(path, picture_endings);
}

std::vector<fs::path> pictures_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    if (is_picture(at->path())) files.push_back(at->path());
  check(!error, folder.string(), ": the folder cannot be read: ", error.message());
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    return detail::name_before(a.filename().string(), b.filename().string());
  });
  return files;
}

class PictureFrames : public VideoSource {
 public:
  PictureFrames(std::string name, int64_t count, std::function<std::string(int64_t)> frame_name,
                std::function<Image(int64_t)> load)
      : name_(std::move(name)), frame_name_(std::move(frame_name)), load_(std::move(load)) {
    const Image first = load_(0);
    info_ = {count, 0, first.width, first.height, true};
  }
  const std::string& name() const override { return name_; }
  const VideoInfo& info() const override { return info_; }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t, const Image&)>& take) const override {
    detail::check_indices(*this, indices);
    Image image;
    for (size_t i = 0; i < indices.size(); ++i) {
      if (i == 0 || indices[i] != indices[i - 1]) image = load_(indices[i]);
      check(image.width == info_.width && image.height == info_.height, frame_name_(indices[i]), ": is ",
            image.width, " x ", image.height, " pixels, and the first frame ", info_.width, " x ",
            info_.height, "; the frames of a video are of one size");
      take(i, image);
    }
  }

 private:
  std::string name_;
  std::function<std::string(int64_t)> frame_name_;
  std::function<Image(int64_t)> load_;
  VideoInfo info_;
};

class FrameList : public VideoSource {
 public:
  FrameList(std::vector<Image> frames, double fps, std::string name)
      : name_(std::move(name)), frames_(std::move(frames)) {
    check(!frames_.empty(), name_, ": a video without frames");
    const Image& first = frames_.front();
    check(first.width > 0 && first.height > 0, name_, ": a frame without pixels");
    for (const Image& frame : frames_) {
      check(frame.width == first.width && frame.height == first.height, name_, ": frame ",
            &frame - frames_.data(), " is ", frame.width, " x ", frame.height, " pixels, the first ",
            first.width, " x ", first.height, "; the frames of a video are of one size");
      invariant(frame.rgb.size() == size_t{3} * frame.width * frame.height, "bytes of a frame");
    }
    info_ = {static_cast<int64_t>(frames_.size()), fps, first.width, first.height, true};
  }
  const std::string& name() const override { return name_; }
  const VideoInfo& info() const override { return info_; }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t, const Image&)>& take) const override {
    detail::check_indices(*this, indices);
    for (size_t i = 0; i < indices.size(); ++i) take(i, frames_[indices[i]]);
  }

 private:
  std::string name_;
  std::vector<Image> frames_;
  VideoInfo info_;
};

}  // namespace

bool detail::name_before(std::string_view a, std::string_view b) {
  const std::pair whole{a, b};
  while (!a.empty() && !b.empty()) {
    if (is_digit(a[0]) && is_digit(b[0])) {
      const std::string_view x = take_number(a), y = take_number(b);
      if (x != y) return x.size() != y.size() ? x.size() < y.size() : x < y;
    } else {
      if (a[0] != b[0]) return static_cast<uint8_t>(a[0]) < static_cast<uint8_t>(b[0]);
      a.remove_prefix(1);
      b.remove_prefix(1);
    }
  }
  // Equal but for leading zeros: any order, but always the same.
  return a.empty() && b.empty() ? whole.first < whole.second : a.empty();
}

void detail::check_indices(const VideoSource& video, std::span<const int64_t> indices) {
  check(std::is_sorted(indices.begin(), indices.end()), video.name(), ": frames are read in ascending order");
  if (indices.empty()) return;
  const int64_t frames = video.info().frames;
  check(indices.front() >= 0 && indices.back() < frames, video.name(), ": frame ",
        indices.front() < 0 ? indices.front() : indices.back(), " of ", frames, " was asked for");
}

std::shared_ptr<const VideoSource> detail::video_of_pictures(const std::string& name, int64_t count,
                                                             std::function<std::string(int64_t)> frame_name,
                                                             std::function<Image(int64_t)> load) {
  return std::make_shared<PictureFrames>(name, count, std::move(frame_name), std::move(load));
}

std::shared_ptr<const VideoSource> detail::open_frame_folder(const fs::path& path) {
  const std::string name = path.string();
  const std::vector<fs::path> files = pictures_in(path);
  check(!files.empty(), name, ": there are no pictures in the folder (.jpg, .png, .webp, ...)");
  return video_of_pictures(
      name, std::ssize(files), [files](int64_t i) { return files[i].string(); },
      [files](int64_t i) { return load_image(files[i]); });
}

std::shared_ptr<const VideoSource> video_of(std::vector<Image> frames, double fps, const std::string& name) {
  return std::make_shared<FrameList>(std::move(frames), fps, name);
}

}  // namespace glimpse
