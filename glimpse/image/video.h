#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/image/image.h"
#include "glimpse/image/resize.h"

namespace glimpse {

/// What there is of a video.
struct VideoInfo {
  int64_t frames = 0;
  double fps = 0;             ///< frames per second, on average
  int width = 0, height = 0;  ///< as it is shown: turned where the file says so
  bool sampled = false;  ///< whether its frames were chosen already: a folder of pictures, or a list of them
};

/// Where a video's frames come from, again and again, for several threads.
class VideoSource {
 public:
  virtual ~VideoSource() = default;
  /// For messages: the path, or what else names it.
  virtual const std::string& name() const = 0;
  virtual const VideoInfo& info() const = 0;
  /// Calls take(i, frame) for the frame at each of `indices` (ascending; one may stand there twice), in their
  /// order. Only the frame that is shown and what the decoder needs are in memory. Errors name the video: it
  /// is damaged or shorter than it said.
  virtual void read(std::span<const int64_t> indices,
                    const std::function<void(size_t i, const Image& frame)>& take) const = 0;
};

/// A video file (MP4, MOV, MKV, WebM, AVI), or a folder of pictures in the order of their names, numbers in
/// them by their size. Error naming it: unreadable, no video in it, a codec that the library does not decode,
/// built without video.
std::shared_ptr<const VideoSource> open_video(const std::filesystem::path& path);
/// The same of a file's bytes.
std::shared_ptr<const VideoSource> open_video(std::vector<uint8_t> bytes, const std::string& name);
/// Frames of one size that are `fps` per second (VideoInfo::sampled).
std::shared_ptr<const VideoSource> video_of(std::vector<Image> frames, double fps, const std::string& name);

/// Which frames of a video a model is shown and how large, as qwen-vl-utils chooses (docs/families.md,
/// section 1).
struct VideoOptions {
  static constexpr int64_t usual_min_frames = 4, usual_max_frames = 768;

  std::optional<double> fps;  ///< frames per second to take, default 2; of a folder: what its pictures are
  std::optional<int64_t> frames;                  ///< so many instead
  std::optional<int64_t> min_frames, max_frames;  ///< default: the usual ones
  std::optional<double> start, end;               ///< seconds of the part to take
  std::optional<int64_t> min_pixels, max_pixels;  ///< of a frame
  std::optional<int64_t> total_pixels;            ///< of all frames

  /// With what is left out here as in `defaults`; a rate only where no number of frames is asked for.
  VideoOptions or_else(const VideoOptions& defaults) const;
  Fields fields();
};

/// A video and what to take of it.
struct Video {
  std::shared_ptr<const VideoSource> source;
  VideoOptions options;
};

/// The frames that the options choose.
struct VideoSample {
  std::vector<int64_t> indices;  ///< in the video, ascending; an even number, the last one twice if need be
  double fps = 0;                ///< of these
  Size size;                     ///< that a frame is resized to: multiples of the factor
};
/// `factor`: side in pixels of a visual token. Errors say what cannot be chosen from that video.
VideoSample sample_video(const VideoInfo& info, const VideoOptions& options, int factor);

/// A frame at that size as torchvision resizes video tensors: float bicubic with antialiasing, rounded once.
Image resize_frame(const Image& frame, Size size);

}  // namespace glimpse
