#include "glimpse/train/frozen_vision.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/engine/prefill.h"

namespace glimpse {

std::shared_ptr<const ImagePrefix> FrozenVision::encoded(const Prompt& prompt) {
  const PrefixKey key = encoder_key(prompt, {}, -1, 0, kept_->seed());
  kept_->fetch(key);
  if (auto known = kept_->find(key)) return known;
  auto fresh = std::make_shared<ImagePrefix>();  // of no rows: the encoder's part of one
  VisionOutput vision = model_.encode(prompt.patches, {});
  fresh->vision.embeds = vision.embeds;
  fresh->vision.structure = vision.structure;
  fresh->vision.additions = vision.additions;
  kept_->insert(key, fresh);
  return fresh;
}

EmbeddedPrompt FrozenVision::embedded(const Prompt& prompt) {
  const at::NoGradGuard no_grad;
  if (!kept_ || prompt.segments.empty()) return embed_prompt(model_, prompt, {});
  const auto known = encoded(prompt);
  EmbeddedPrompt out;
  out.rows = embed_rows(model_, prompt.ids, prompt.visual_rows, known->vision.embeds, prompt.structure_rows,
                        known->vision.structure);
  out.vision.additions = known->vision.additions;
  return out;
}

}  // namespace glimpse
