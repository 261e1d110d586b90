#pragma once

#include <cstdint>
#include <vector>

#include "glimpse/image/clip_image.h"
#include "glimpse/image/resize.h"

namespace glimpse {

/// How LLaVA-NeXT prepares pictures: as a whole and, at a higher resolution, in tiles.
struct AnyresOptions {
  ClipImageOptions tile;          ///< its crop_size is a tile's side
  std::vector<Size> resolutions;  ///< of the tiles together, in the order in which equals are chosen
  /// The number of rows or columns that padding leaves is rounded to seven places before it is cut
  /// (transformers), or just cut (the first public code).
  bool rounds = true;
};

/// Where the tiles of a picture and what padding leaves of them lie.
struct AnyresLayout {
  Size tiles;        ///< rows and columns of tiles
  Size resized;      ///< the picture within them, in pixels
  Size offset;       ///< rows and columns of black before it
  Size first, last;  ///< tokens of the tiles together that stay: from first to before last
  Box area;          ///< what these cover, in parts of the picture's sides
  int rows() const { return last.height - first.height; }
  int cols() const { return last.width - first.width; }
};

/// Of a picture of `width` x `height` pixels, a tile having `tokens` of `patch` pixels along either side.
/// What stays may have no rows or no columns. Error without resolutions, or for one that is no multiple of a
/// tile.
AnyresLayout anyres_layout(int width, int height, const AnyresOptions& options, int patch);

/// The picture squeezed to one tile, then its tiles row by row: a frame of patches each.
Patches anyres_patches(const Image& image, const AnyresOptions& options, int patch);

}  // namespace glimpse
