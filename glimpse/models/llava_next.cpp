#include "glimpse/models/llava_next.h"

#include "glimpse/base/check.h"

namespace glimpse {

void LlavaNext::find_parts(const Weights& weights, const LlavaSettings& settings, int64_t hidden_size,
                           at::TensorOptions options) {
  image_newline_ = weights.take("visual.image_newline", {hidden_size}, options);
  anyres_.tile.crop_size = static_cast<int>(visual().image_size());
  anyres_.resolutions = settings.resolutions;
  anyres_.rounds = settings.rounds;
}

AnyresLayout LlavaNext::layout_of(const Patches& image) const {
  const AnyresLayout layout =
      anyres_layout(image.width, image.height, anyres_, static_cast<int>(visual().patch()));
  check(image.grid.t == 1 + layout.tiles.height * layout.tiles.width, "prompt: an image of ", image.width,
        " x ", image.height, " pixels has ", image.grid.t, " tiles, expected ",
        1 + layout.tiles.height * layout.tiles.width);
  return layout;
}

Patches LlavaNext::patches_of(const Image& image) const {
  AnyresOptions options = anyres_;
  options.tile = *image_options();
  return anyres_patches(image, options, static_cast<int>(visual().patch()));
}

std::vector<TokenGrid> LlavaNext::grids_of(const Patches& image) const {
  const AnyresLayout layout = layout_of(image);
  return {{image.grid.h, image.grid.w, whole_image},
          {layout.rows(), layout.cols(), layout.area, layout.rows()}};
}

std::vector<TilePart> LlavaNext::parts_of(const Patches& image) const {
  const AnyresLayout layout = layout_of(image);
  std::vector<TilePart> parts = {{0, 1, {}, {}}};
  const at::Tensor newlines = image_newline_.expand({layout.rows(), -1});
  if (layout.rows() == 0 || layout.cols() == 0) {  // its newlines are there nevertheless
    parts[0].structure = newlines;
    return parts;
  }
  TilePart mosaic{1, image.grid.t - 1, {}, newlines};
  const int h = image.grid.h, w = image.grid.w;
  for (int row = layout.first.height; row < layout.last.height; ++row)
    for (int col = layout.first.width; col < layout.last.width; ++col) {
      const int tile = row / h * layout.tiles.width + col / w;
      mosaic.tokens.push_back((int64_t{tile} * h + row % h) * w + col % w);
    }
  parts.push_back(std::move(mosaic));
  return parts;
}

}  // namespace glimpse
