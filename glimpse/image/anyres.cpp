#include "glimpse/image/anyres.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

/// The resolution that shows most of the picture's own pixels and, of equals, wastes least.
Size best_resolution(int width, int height, const std::vector<Size>& resolutions) {
  Size best;
  int64_t most = -1, least = std::numeric_limits<int64_t>::max();
  for (const Size& size : resolutions) {
    const double scale =
        std::min(static_cast<double>(size.width) / width, static_cast<double>(size.height) / height);
    const int64_t shown = std::min(static_cast<int64_t>(width * scale) * static_cast<int64_t>(height * scale),
                                   int64_t{width} * height);
    const int64_t wasted = int64_t{size.width} * size.height - shown;
    if (shown > most || (shown == most && wasted < least)) {
      most = shown;
      least = wasted;
      best = size;
    }
  }
  return best;
}

/// The picture fitted into `room`: one side fills it, the other is rounded up.
Size fitted(int width, int height, const Size& room) {
  const double across = static_cast<double>(room.width) / width,
               down = static_cast<double>(room.height) / height;
  const auto scaled = [](int side, double scale, int most) {
    return std::min(static_cast<int>(std::ceil(side * scale)), most);
  };
  return across < down ? Size{scaled(height, across, room.height), room.width}
                       : Size{room.height, scaled(width, down, room.width)};
}

/// First and last of `tokens` without those that are padding only, where a side of `length` pixels was scaled
/// to the tokens as one of `across` pixels was to `whole` tokens.
std::pair<int, int> unpadded(int tokens, int length, int whole, int across, bool rounds) {
  const double left = length * (static_cast<double>(whole) / across);
  // Rounding to seven places lifts what is as close as that to the next number.
  const int padding = (tokens - static_cast<int>(rounds ? left + 5e-8 : left)) / 2;
  return {padding, tokens - padding};
}

}  // namespace

AnyresLayout anyres_layout(int width, int height, const AnyresOptions& options, int patch) {
  const int side = options.tile.crop_size;
  check(width > 0 && height > 0, "an image of ", width, " x ", height, " pixels has no tiles");
  check(!options.resolutions.empty(), "image_grid_pinpoints: expected at least one resolution");
  for (const Size& size : options.resolutions)
    check(size.width > 0 && size.height > 0 && size.width % side == 0 && size.height % side == 0 &&
              size.width <= 4096 && size.height <= 4096,
          "image_grid_pinpoints: ", size.width, " x ", size.height, " pixels are no tiles of ", side, " x ",
          side);
  const Size room = best_resolution(width, height, options.resolutions);
  AnyresLayout out;
  out.tiles = {room.height / side, room.width / side};
  out.resized = fitted(width, height, room);
  out.offset = {(room.height - out.resized.height) / 2, (room.width - out.resized.width) / 2};
  const int rows = room.height / patch, cols = room.width / patch;
  out.last = {rows, cols};
  if (static_cast<double>(width) / height > static_cast<double>(cols) / rows)
    std::tie(out.first.height, out.last.height) = unpadded(rows, height, cols, width, options.rounds);
  else
    std::tie(out.first.width, out.last.width) = unpadded(cols, width, rows, height, options.rounds);
  const auto part = [&](int token, int offset, int resized) {
    return static_cast<double>(token * patch - offset) / resized;
  };
  out.area = {part(out.first.width, out.offset.width, out.resized.width),
              part(out.first.height, out.offset.height, out.resized.height),
              part(out.last.width, out.offset.width, out.resized.width),
              part(out.last.height, out.offset.height, out.resized.height)};
  return out;
}

Patches anyres_patches(const Image& image, const AnyresOptions& options, int patch) {
  const AnyresLayout layout = anyres_layout(image.width, image.height, options, patch);
  const int side = options.tile.crop_size;
  const Image padded =
      framed(resize(image, layout.resized.width, layout.resized.height), -layout.offset.width,
             -layout.offset.height, layout.tiles.width * side, layout.tiles.height * side, {});
  std::vector<at::Tensor> tiles;
  const auto add = [&](const Image& tile) {
    tiles.push_back(cut_patches(normalised(tile, options.tile), patch).pixel_values);
  };
  add(resize(image, side, side));
  for (int row = 0; row < layout.tiles.height; ++row)
    for (int col = 0; col < layout.tiles.width; ++col)
      add(framed(padded, col * side, row * side, side, side, {}));
  Patches out{at::cat(tiles), {static_cast<int>(tiles.size()), side / patch, side / patch}};
  out.width = image.width;
  out.height = image.height;
  return out;
}

}  // namespace glimpse
