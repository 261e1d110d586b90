#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "glimpse/image/boxes.h"
#include "glimpse/image/image.h"

namespace glimpse {

/// A token grid over `area` of a picture and its tokens that are kept (flat row-major indices, in any order).
struct KeptGrid {
  int64_t rows = 0, cols = 0;
  std::vector<int64_t> keep;
  Box area = whole_image;
};

/// The picture with what its grids keep shown: pixels in a kept cell of any of them tinted green with a green
/// line around them, the others darkened. Same size as the picture. Throws Error for an index outside its
/// grid.
Image draw_kept(const Image& image, std::span<const KeptGrid> grids);

/// The same for one grid: the picture with its `rows` x `cols` token grid shown: cells of tokens in `keep`
/// (flat row-major indices, in any order) tinted green with a green line where they meet dropped ones,
/// dropped cells darkened. Same size as the picture. The grid covers `area` of it; what lies outside counts
/// as dropped. Throws Error for an index outside the grid.
Image draw_kept(const Image& image, int rows, int cols, const std::vector<int64_t>& keep,
                const Box& area = whole_image);

/// What the grids keep of a picture of `width` x `height` pixels: white in a kept cell of any of them, else
/// black. Throws Error for an index outside its grid.
Image kept_mask(std::span<const KeptGrid> grids, int width, int height);

/// The bytes of a PNG file. Throws Error for a picture without pixels.
std::vector<uint8_t> encode_png(const Image& image);

/// The bytes of a JPEG file at `quality` 1 to 100. Throws Error for a picture without pixels.
std::vector<uint8_t> encode_jpeg(const Image& image, int quality);

/// Writes a PNG; the file appears under `path` only when complete. Throws Error naming the path.
void save_png(const Image& image, const std::filesystem::path& path);

/// Writes what the grids keep of a picture of `width` x `height` pixels as a grey PNG: 255 in a kept cell of
/// any of them, else 0. Throws Error naming the path.
void save_mask_png(std::span<const KeptGrid> grids, int width, int height, const std::filesystem::path& path);

/// The same for one grid: writes a `rows` x `cols` token mask (0 or not 0, row-major) as a grey PNG of 0 and
/// 255, stretched to `area` of `width` x `height` pixels. Throws Error naming the path.
void save_mask_png(const std::vector<uint8_t>& mask, int rows, int cols, int width, int height,
                   const std::filesystem::path& path, const Box& area = whole_image);

}  // namespace glimpse
