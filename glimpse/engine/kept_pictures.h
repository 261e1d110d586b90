#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "glimpse/image/medium.h"
#include "glimpse/image/overlay.h"

namespace glimpse {

/// The frames that a model is shown of a video.
struct ShownFrames {
  std::vector<int64_t> indices;  ///< in the video; an even number, the last one twice if need be
  double fps = 0;                ///< of these
};
/// Error, naming the video, where its options choose nothing.
ShownFrames shown_frames(const Video& video);

/// How what is kept is drawn: the kept cells tinted and the others darkened (draw_kept), or white on black.
enum class KeptStyle { overlay, mask };

/// What `grids`, those of a medium (kept_grids), keep of it. A video becomes a sheet with the first frame of
/// every grid, made smaller where there are many. Frames are read one by one.
Image kept_picture(const Medium& medium, std::span<const KeptGrid> grids, KeptStyle style);

/// Writes it as PNG, or, of a video and where the path's ending says so (is_video_name), as a video of all
/// frames that were shown, as large as they are and at their rate. Errors name the path.
void save_kept(const Medium& medium, std::span<const KeptGrid> grids, KeptStyle style,
               const std::filesystem::path& path);

}  // namespace glimpse
