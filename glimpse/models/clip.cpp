#include "glimpse/models/clip.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"

namespace glimpse {

namespace {

// Of n pictures' rows [n, 1 + tokens, ...] those of the patches, then, if wanted, those of the class tokens.
at::Tensor patches_first(const at::Tensor& x, bool class_tokens) {
  const at::Tensor patches = x.narrow(1, 1, x.size(1) - 1).flatten(0, 1);
  return class_tokens ? at::cat({patches, x.select(1, 0)}) : patches;
}

// The class token's attention to its picture of `rows` rows; q, k [n * rows, H, d].
VisionAttention paid_by_class(const at::Tensor& q, const at::Tensor& k, int64_t rows, bool class_tokens) {
  const auto pictures = [&](const at::Tensor& t) {
    return t.view({-1, rows, t.size(1), t.size(2)}).to(at::kFloat);
  };
  const at::Tensor keys = pictures(k);
  const at::Tensor weights = attention_weights(pictures(q).select(1, 0), keys);  // [n, H, rows]
  return {patches_first(weights.mean(1), class_tokens), patches_first(keys.mean(2), class_tokens)};
}

}  // namespace

ClipVit ClipVit::load(const nlohmann::json& c, int64_t last_state, const Weights& weights,
                      at::TensorOptions options, const WeightOptions& how) {
  ClipVit vit;
  // A config leaves out what equals the defaults of the format: those of ViT-B/32.
  const ClipShape shape = ClipShape::read(c, {768, 3072, 12, 12});
  const int64_t d = shape.hidden, depth = vit.depth_ = shape.layers;
  vit.patch_ = clip_number(c, "patch_size", 32);
  vit.image_size_ = clip_number(c, "image_size", 224);
  check(vit.image_size_ % vit.patch_ == 0 && vit.image_size_ <= 8192, "CLIP config: image_size ",
        vit.image_size_, " and patch_size ", vit.patch_, " do not fit together");
  const int64_t state = last_state < 0 ? depth + 1 + last_state : last_state;
  check(state >= 0 && state <= depth, "CLIP: hidden state ", last_state,
        " was asked for, but the encoder has ", depth, " layers");

  const ClipTensors from{weights, "visual.vision_model.", options, how};
  const int64_t side = vit.image_size_ / vit.patch_;
  vit.patch_embedding_.weight =
      from.take("embeddings.patch_embedding.weight", {d, 3, vit.patch_, vit.patch_}).flatten(1);
  vit.class_embedding_ = from.take("embeddings.class_embedding", {d});
  vit.position_embedding_ = from.take("embeddings.position_embedding.weight", {side * side + 1, d});
  vit.pre_layrnorm_ = ClipNorm::load(from, "pre_layrnorm", shape);
  for (int64_t i = 0; i < state; ++i) vit.blocks_.push_back(ClipBlock::load(from, i, shape));
  return vit;
}

std::vector<at::Tensor> ClipVit::operator()(const at::Tensor& pixel_values, const VisionTaps& taps,
                                            std::vector<VisionAttention>* attention) const {
  const int64_t pictures = pixel_values.size(0) / tokens(), d = hidden_size();
  check(pictures * tokens() == pixel_values.size(0), "CLIP: ", pixel_values.size(0),
        " patches are no whole pictures of ", tokens());
  check(pixel_values.size(1) == patch_embedding_.weight.size(1), "CLIP: a patch has ", pixel_values.size(1),
        " values, expected ", patch_embedding_.weight.size(1));
  const at::Tensor patches = patch_embedding_(pixel_values.to(patch_embedding_.weight.options()));
  at::Tensor x = at::cat({class_embedding_.expand({pictures, 1, d}), patches.view({pictures, -1, d})}, 1);
  x = pre_layrnorm_((x + position_embedding_).flatten(0, 1));

  const std::vector<int64_t> tapped = tapped_blocks(taps, last_state());
  const Segments each_picture(std::vector<int64_t>(pictures, 1 + tokens()));
  if (attention) attention->resize(tapped.size());
  std::vector<at::Tensor> out(taps.states.size());
  for (int64_t i = 0;; ++i) {
    for (size_t s = 0; s < out.size(); ++s)
      if (taps.states[s] == i) out[s] = patches_first(x.view({pictures, -1, d}), taps.class_tokens);
    if (i == last_state()) return out;
    // Every picture attends to itself.
    x = blocks_[i](x, [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
      const bool wanted = attention && std::find(tapped.begin(), tapped.end(), i) != tapped.end();
      const VisionAttention recorded =
          wanted ? paid_by_class(q, k, 1 + tokens(), taps.class_tokens) : VisionAttention();
      for (size_t t = 0; wanted && t < tapped.size(); ++t)
        if (tapped[t] == i) (*attention)[t] = recorded;
      return segment_attention(q, k, v, each_picture);
    });
  }
}

}  // namespace glimpse
