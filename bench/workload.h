#pragma once

#include <string>

#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"

namespace glimpse::bench {

/// The patch grid of an image: as near to a square as its visual tokens allow, or a frame for each of its
/// tiles; of a video of so many `frames`, two in a slice, as near to one as a slice's allow.
Grid patch_grid(int64_t visual, const VisionShape& vision, int64_t frames = 0);

/// The prompt that everything is timed with: one image, or a video of so many `frames`, of `visual` tokens
/// and `text` others, those around it included; random ids and noise, the same in every run. `config`: the
/// model's config.json.
Prompt make_prompt(const nlohmann::json& config, int64_t visual, int64_t text, const Vlm& model,
                   int64_t frames = 0);

/// What decoding a token reads of a language model whose linear layers are "bf16", "int8" or "int4".
double weight_bytes(const DecoderConfig& c, const std::string& weights);

}  // namespace glimpse::bench
