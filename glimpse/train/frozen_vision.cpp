#include "glimpse/train/frozen_vision.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/engine/hash.h"
#include "glimpse/engine/prefill.h"

namespace glimpse {

namespace {

PrefixKey key_of(const Prompt& prompt, uint64_t seed) {
  Hash hash(seed);
  for (const Patches& image : prompt.patches) {
    hash.add(std::vector<int64_t>{image.grid.t, image.grid.h, image.grid.w});
    hash.add(image.pixel_values);
  }
  // Separators between segments come with the pictures.
  for (const Segment& segment : prompt.segments) hash.add(std::vector<int64_t>{segment.rows, segment.cols});
  const XXH128_hash_t sum = hash.sum();
  return {sum.high64, sum.low64};
}

}  // namespace

std::shared_ptr<const ImagePrefix> FrozenVision::encoded(const Prompt& prompt) {
  const PrefixKey key = key_of(prompt, kept_->seed());
  kept_->fetch(key);
  if (auto known = kept_->find(key)) return known;
  auto fresh = std::make_shared<ImagePrefix>();  // of no rows: the encoder's part of one
  VisionOutput vision = model_.encode(prompt.patches, {});
  fresh->vision.embeds = vision.embeds;
  fresh->vision.structure = vision.structure;
  kept_->insert(key, fresh);
  return fresh;
}

at::Tensor FrozenVision::rows(const Prompt& prompt) {
  const at::NoGradGuard no_grad;
  if (!kept_ || prompt.segments.empty()) return embed_prompt(model_, prompt, {}).rows;
  const auto vision = encoded(prompt);
  return embed_rows(model_, prompt.ids, prompt.visual_rows, vision->vision.embeds, prompt.structure_rows,
                    vision->vision.structure);
}

}  // namespace glimpse
