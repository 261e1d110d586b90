#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>

#include "glimpse/image/image.h"

namespace glimpse {

/// The frames row by row, so many in a row, with a thin line between them. Error: none, none in a row, or not
/// all of one size.
Image contact_sheet(std::span<const Image> frames, int columns);

/// Writes a video of what `next` gives until it gives nothing, all of one size: H.264, or MPEG-4 where FFmpeg
/// has no x264; an odd side gets a pixel more. The file appears under `path`, whose ending says what it is
/// (.mp4, .mov, .mkv), only when complete. Error naming it.
void save_video(const std::filesystem::path& path, double fps,
                const std::function<std::optional<Image>()>& next);
void save_video(const std::filesystem::path& path, double fps, std::span<const Image> frames);

/// Whether save_video can write a file of that ending.
bool is_video_name(const std::filesystem::path& path);

}  // namespace glimpse
