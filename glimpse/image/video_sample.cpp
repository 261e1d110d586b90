#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/image/pixel_bounds.h"
#include "glimpse/image/video.h"
#include "glimpse/image/video_rate.h"

namespace glimpse {
namespace {

constexpr double default_fps = 2;
constexpr int64_t pair = 2;  // frames that the encoders take together
/// Of a frame, in visual tokens; of all frames, likewise: nine tenths of a context of 128,000.
constexpr int64_t least_tokens = 128, most_tokens = 768;
constexpr double all_tokens = 0.9 * 128'000;

/// Consecutive frames of a video.
struct Part {
  int64_t first = 0, last = 0;
  int64_t count() const { return last - first + 1; }
};

Part part_of(const VideoInfo& info, double fps, const VideoOptions& options) {
  Part part{0, info.frames - 1};
  if (!options.start && !options.end) return part;
  const double duration = static_cast<double>(info.frames) / fps;
  const auto frame_at = [&](double seconds) { return std::clamp(seconds, 0.0, duration) * fps; };
  if (options.start) part.first = static_cast<int64_t>(std::ceil(frame_at(*options.start)));
  if (options.end) part.last = std::min(part.last, static_cast<int64_t>(std::floor(frame_at(*options.end))));
  check(part.first < part.last, "no two frames lie between second ", options.start.value_or(0), " and ",
        options.end.value_or(duration), " of a video of ", duration, " seconds (", info.frames, " frames, ",
        fps, " a second)");
  return part;
}

int64_t even_below(double count) {
  return static_cast<int64_t>(std::floor(count / pair)) * pair;
}

/// The even number nearest to what was asked for; half way, the one that is a multiple of 4 (as Python
/// rounds).
int64_t even_nearest(int64_t count) {
  return static_cast<int64_t>(std::nearbyint(static_cast<double>(count) / pair)) * pair;
}

/// smart_nframes of qwen-vl-utils.
int64_t frame_count(double total, double video_fps, const VideoOptions& options) {
  if (options.frames) return even_nearest(*options.frames);
  const int64_t least =
      (options.min_frames.value_or(VideoOptions::usual_min_frames) + pair - 1) / pair * pair;
  const int64_t most = options.max_frames.value_or(VideoOptions::usual_max_frames) / pair * pair;
  const double at_rate = total / video_fps * options.fps.value_or(default_fps);
  return even_below(
      std::min({std::max(at_rate, static_cast<double>(least)), static_cast<double>(most), total}));
}

/// Frames that were chosen already are all taken, the last one twice if they are odd, unless there are too
/// many.
int64_t chosen_count(int64_t total, const VideoOptions& options) {
  if (options.frames) return even_nearest(*options.frames);
  const int64_t most = options.max_frames.value_or(VideoOptions::usual_max_frames);
  return total > most ? even_below(static_cast<double>(most)) : total;
}

std::vector<int64_t> spread(const Part& part, int64_t count) {
  // In float32, as torch.linspace gives them.
  const at::Tensor indices =
      at::linspace(part.first, part.last, count, at::TensorOptions().dtype(at::kFloat)).round().to(at::kLong);
  const int64_t* data = indices.const_data_ptr<int64_t>();
  return {data, data + count};
}

Size frame_size(const VideoInfo& info, const VideoOptions& options, int factor, int64_t count) {
  const double token = static_cast<double>(factor) * factor;
  const auto frames = static_cast<double>(count);
  const double least = options.min_pixels ? static_cast<double>(*options.min_pixels) : least_tokens * token;
  const double all = options.total_pixels ? static_cast<double>(*options.total_pixels) : all_tokens * token;
  double most = std::max(std::min(most_tokens * token, all / frames * pair), std::floor(least * 1.05));
  if (options.max_pixels) most = std::min(most, static_cast<double>(*options.max_pixels));
  check(least <= most, "max_pixels ", most, " is less than min_pixels ", least,
        " of a video's frames; give min_pixels, too");
  const Size size = detail::smart_resize_between(info.height, info.width, factor, least, most, false);
  check(size.height > 0 && size.width > 0, "frames of ", info.width, " x ", info.height,
        " pixels are too thin to be shown in at most ", most, " pixels each");
  return size;
}

}  // namespace

VideoOptions VideoOptions::or_else(const VideoOptions& defaults) const {
  VideoOptions out = defaults;
  if (fps || frames) {
    out.fps = fps;
    out.frames = frames;
  }
  const auto take = [](const auto& own, auto& value) {
    if (own) value = own;
  };
  take(min_frames, out.min_frames);
  take(max_frames, out.max_frames);
  take(start, out.start);
  take(end, out.end);
  take(min_pixels, out.min_pixels);
  take(max_pixels, out.max_pixels);
  take(total_pixels, out.total_pixels);
  return out;
}

Fields VideoOptions::fields() {
  constexpr double any = 1e9, slowest = 1e-9;
  return Fields()
      .add("fps", fps, "frames per second to take of a video; none: 2, or of a folder what its pictures are",
           {slowest, any})
      .add("frames", frames, "so many frames instead, rounded to an even number", {2, any})
      .add("min_frames", min_frames, "least frames of a video, if it has them; none: 4", {2, any})
      .add("max_frames", max_frames, "most frames of a video; none: 768", {2, any})
      .add("start", start, "second of the video at which to start", {0, any})
      .shown_as("TIME")
      .add("end", end, "second of the video at which to end", {0, any})
      .shown_as("TIME")
      .add("min_pixels", min_pixels, "least pixels of a frame; none: 128 visual tokens", {1, any})
      .add("max_pixels", max_pixels, "most pixels of a frame; none: 768 visual tokens", {1, any})
      .add("total_pixels", total_pixels,
           "most pixels of a video's frames, in pairs; none: 115,200 visual tokens", {1, 1e15});
}

double detail::video_rate(const VideoInfo& info, const VideoOptions& options) {
  const double own = info.fps > 0 ? info.fps : default_fps;
  return info.sampled && options.fps ? *options.fps : own;
}

VideoSample sample_video(const VideoInfo& info, const VideoOptions& options, int factor) {
  invariant(factor > 0, "the side of a visual token");
  check(info.frames > 0 && info.width > 0 && info.height > 0, "a video without frames");
  check(info.sampled || !options.fps || !options.frames,
        "fps and frames were both given; a number of frames leaves no rate to choose");
  const double video_fps = detail::video_rate(info, options);
  const Part part = part_of(info, video_fps, options);
  const int64_t total = part.count();
  const auto all = static_cast<double>(total);

  VideoSample sample;
  const int64_t count = info.sampled ? chosen_count(total, options) : frame_count(all, video_fps, options);
  check(count <= total && count >= (info.sampled ? 1 : pair), info.sampled ? "a list of " : "a video of ",
        total, total == 1 ? " frame" : " frames", options.start || options.end ? " in that part" : "",
        " cannot give ", count, " (at least ", pair, ", at most as many as it has)");
  sample.indices = spread(part, count);
  if (count % pair) sample.indices.push_back(part.last);
  sample.fps = count == total && info.sampled ? video_fps : static_cast<double>(count) / all * video_fps;
  sample.size = frame_size(info, options, factor, static_cast<int64_t>(sample.indices.size()));
  return sample;
}

Image resize_frame(const Image& frame, Size size) {
  check(size.width > 0 && size.height > 0, "cannot resize a frame to ", size.width, " x ", size.height);
  check(frame.width > 0 && frame.height > 0, "cannot resize an empty frame");
  if (size == Size{frame.height, frame.width}) return frame;
  const at::Tensor pixels =
      at::from_blob(const_cast<uint8_t*>(frame.rgb.data()), {frame.height, frame.width, 3}, at::kByte);
  const at::Tensor planes = pixels.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat).contiguous();
  const at::Tensor resized = at::_upsample_bicubic2d_aa(planes, {size.height, size.width}, false)
                                 .clamp_(0, 255)
                                 .round_()
                                 .to(at::kByte)
                                 .squeeze(0)
                                 .permute({1, 2, 0})
                                 .contiguous();
  const uint8_t* bytes = resized.const_data_ptr<uint8_t>();
  return {size.width, size.height, {bytes, bytes + resized.numel()}};
}

}  // namespace glimpse
