#pragma once

#include <algorithm>
#include <filesystem>
#include <span>
#include <string_view>

#include "glimpse/base/ascii.h"

namespace glimpse {

/// Endings of files, in small letters.
inline constexpr std::string_view picture_endings[] = {".jpg", ".jpeg", ".png",  ".webp", ".gif",  ".bmp",
                                                       ".tif", ".tiff", ".avif", ".heic", ".heif", ".ico",
                                                       ".ppm", ".pgm",  ".pbm",  ".tga"};
inline constexpr std::string_view video_endings[] = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"};

/// Whether a file is called like one of these.
inline bool has_ending(const std::filesystem::path& path, std::span<const std::string_view> endings) {
  return std::ranges::find(endings, lowered(path.extension().string())) != endings.end();
}

}  // namespace glimpse
