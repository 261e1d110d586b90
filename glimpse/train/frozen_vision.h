#pragma once

#include <memory>

#include "glimpse/engine/prefix_cache.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

/// Embeds prompts for a language model that trains behind a frozen encoder: what that gives for pictures is
/// kept, as they come again in every epoch and with other questions. Nothing is kept that depends on the
/// language model. The model must outlive it.
class FrozenVision {
 public:
  /// `kept`: by the pictures alone, so its origin on disk names the encoder's weights; null: nothing is kept.
  FrozenVision(const Vlm& model, std::unique_ptr<PrefixCache> kept) : model_(model), kept_(std::move(kept)) {}

  /// As embed_prompt() without taps, without gradients.
  EmbeddedPrompt embedded(const Prompt& prompt);

 private:
  std::shared_ptr<const ImagePrefix> encoded(const Prompt& prompt);

  const Vlm& model_;
  std::unique_ptr<PrefixCache> kept_;
};

}  // namespace glimpse
