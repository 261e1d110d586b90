#include <mutex>

#include "glimpse/base/check.h"
#include "glimpse/image/frame_folder.h"
#include "glimpse/image/libav/decoder.h"
#include "glimpse/image/libav/to_image.h"
#include "glimpse/image/libav/write.h"

namespace glimpse::libav {
namespace {

class VideoFile : public VideoSource {
 public:
  explicit VideoFile(File file) : file_(std::move(file)) {
    const Input input(file_);
    const AVCodecParameters& codec = *input.stream().codecpar;
    orientation_ = orientation_of(input.stream());
    width_ = codec.width;
    height_ = codec.height;
    timeline_ = read_timeline(input, file_.name);
    info_ = {timeline_.frames, timeline_.fps, width_, height_, false};
    if (orientation_ >= 5) std::swap(info_.width, info_.height);
  }
  const std::string& name() const override { return file_.name; }
  const VideoInfo& info() const override { return info_; }

  void read(std::span<const int64_t> indices,
            const std::function<void(size_t, const Image&)>& take) const override {
    detail::check_indices(*this, indices);
    if (indices.empty()) return;
    Decoder decoder(file_, timeline_);
    ToImage to_image(width_, height_, orientation_);
    Image image;
    int64_t shown = -1;
    for (size_t i = 0; i < indices.size(); ++i) {
      const AVFrame& frame = decoder.at(indices[i]);
      if (shown != decoder.shown()) image = to_image.convert(frame, file_.name);
      shown = decoder.shown();
      take(i, image);
    }
  }

 private:
  File file_;
  Timeline timeline_;
  int width_ = 0, height_ = 0, orientation_ = 1;
  VideoInfo info_;
};

class Module : public detail::VideoModule {
 public:
  Module() {
    av_log_set_level(AV_LOG_QUIET);  // what fails becomes an Error
    av_max_alloc(size_t{1} << 28);   // what a file's tables and one plane of its frames may take
  }
  std::shared_ptr<const VideoSource> open(std::shared_ptr<const detail::FileBytes> bytes,
                                          const char* container, const std::string& name) const override {
    return std::make_shared<VideoFile>(File{std::move(bytes), container, name});
  }
  void write(const detail::VideoOutput& output,
             const std::function<std::optional<Image>()>& next) const override {
    write_video(output, next);
  }
};

}  // namespace
}  // namespace glimpse::libav

extern "C" const glimpse::detail::VideoModule* glimpse_video_1() {
  static const glimpse::libav::Module module;
  return &module;
}
