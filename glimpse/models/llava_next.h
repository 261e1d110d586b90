#pragma once

#include "glimpse/image/anyres.h"
#include "glimpse/models/llava.h"

namespace glimpse {

/// LLaVA-NeXT (llava-v1.6), with Vicuna or Mistral: pictures go through CLIP as a whole and in tiles. Their
/// tokens are in two grids, that of the whole picture and that of the tiles together without what is padding
/// only, with a learned row after each of its rows.
class LlavaNext : public Llava {
 protected:
  Patches patches_of(const Image& image) const override;
  std::vector<TokenGrid> grids_of(const Patches& image) const override;
  std::vector<TilePart> parts_of(const Patches& image) const override;
  void find_parts(const Weights& weights, const LlavaSettings& settings, int64_t hidden_size,
                  at::TensorOptions options) override;

 private:
  AnyresLayout layout_of(const Patches& image) const;

  AnyresOptions anyres_;  // of `tile` only the side; the rest is the preprocessor's
  at::Tensor image_newline_;
};

}  // namespace glimpse
