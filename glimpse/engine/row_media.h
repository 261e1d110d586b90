#pragma once

#include <filesystem>
#include <vector>

#include "glimpse/io/row_box.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

/// What a row of a file of questions shows, as a Request has it.
struct RowMedia {
  std::vector<Medium> media;            ///< its pictures, then its videos
  std::vector<Part> parts;              ///< that a message shows them with
  std::vector<std::vector<Box>> boxes;  ///< per medium: those of the row, which are of the first one
};

/// Decodes the pictures and opens the videos. `bounds` that are given hold for the frames of a video whose
/// options give none. Errors name the file.
RowMedia load_row_media(const std::vector<std::filesystem::path>& images,
                        const std::vector<std::filesystem::path>& videos, const std::vector<Box>& boxes,
                        const ImageBounds& bounds, const VideoOptions& video);
/// One of them.
Medium load_medium(const std::filesystem::path& path, bool is_video, const ImageBounds& bounds,
                   const VideoOptions& video);

/// Of a picture, or of a video's frames.
Size size_of(const Medium& medium);
/// A row's boxes in parts of the sides of what is that large.
std::vector<Box> normalised(const std::vector<Box>& boxes, Size size);

}  // namespace glimpse
