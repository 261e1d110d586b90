#pragma once

#include "glimpse/image/video.h"

namespace glimpse::detail {

/// Frames per second that a video has: its own, or of frames that were chosen already what the options say,
/// as they come without times.
double video_rate(const VideoInfo& info, const VideoOptions& options);

}  // namespace glimpse::detail
