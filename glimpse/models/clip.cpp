#include "glimpse/models/clip.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

ClipVit ClipVit::load(const nlohmann::json& c, int64_t last_state, const Weights& weights,
                      at::TensorOptions options, const WeightOptions& how) {
  ClipVit vit;
  const auto number = [&](const char* key, int64_t fallback) {
    const int64_t value = c.value(key, fallback);
    check(value > 0 && value < (1 << 24), "CLIP config: ", key, " is ", value);
    return value;
  };
  // A config leaves out what equals the defaults of the format: those of ViT-B/32.
  const int64_t d = number("hidden_size", 768), ff = number("intermediate_size", 3072);
  const int64_t depth = vit.depth_ = number("num_hidden_layers", 12);
  vit.heads_ = number("num_attention_heads", 12);
  vit.patch_ = number("patch_size", 32);
  vit.image_size_ = number("image_size", 224);
  vit.norm_eps_ = c.value("layer_norm_eps", 1e-5);
  const auto act = c.value("hidden_act", std::string("quick_gelu"));
  check(act == "quick_gelu" || act == "gelu", "CLIP config: hidden_act '", act,
        "' is not supported, only quick_gelu and gelu");
  vit.quick_gelu_ = act == "quick_gelu";
  check(d % vit.heads_ == 0 && vit.image_size_ % vit.patch_ == 0 && vit.image_size_ <= 8192,
        "CLIP config: hidden_size ", d, " and num_attention_heads ", vit.heads_, ", image_size ",
        vit.image_size_, " and patch_size ", vit.patch_, " do not fit together");
  const int64_t state = last_state < 0 ? depth + 1 + last_state : last_state;
  check(state >= 0 && state <= depth, "CLIP: hidden state ", last_state,
        " was asked for, but the encoder has ", depth, " layers");

  const std::string root = "visual.vision_model.";
  const auto norm = [&](const std::string& name) {
    return Norm{weights.take(root + name + ".weight", {d}, options),
                weights.take(root + name + ".bias", {d}, options)};
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return take_linear(weights, root + name, out, in, true, options, how);
  };
  const int64_t side = vit.image_size_ / vit.patch_;
  vit.patch_embedding_.weight =
      weights.take(root + "embeddings.patch_embedding.weight", {d, 3, vit.patch_, vit.patch_}, options)
          .flatten(1);
  vit.class_embedding_ = weights.take(root + "embeddings.class_embedding", {d}, options);
  vit.position_embedding_ =
      weights.take(root + "embeddings.position_embedding.weight", {side * side + 1, d}, options);
  vit.pre_layrnorm_ = norm("pre_layrnorm");
  for (int64_t i = 0; i < state; ++i) {
    const std::string p = "encoder.layers." + std::to_string(i) + ".";
    vit.blocks_.push_back({norm(p + "layer_norm1"), norm(p + "layer_norm2"),
                           linear(p + "self_attn.q_proj", d, d), linear(p + "self_attn.k_proj", d, d),
                           linear(p + "self_attn.v_proj", d, d), linear(p + "self_attn.out_proj", d, d),
                           linear(p + "mlp.fc1", ff, d), linear(p + "mlp.fc2", d, ff)});
  }
  return vit;
}

at::Tensor ClipVit::norm(const at::Tensor& x, const Norm& norm) const {
  return layer_norm(x, norm.weight, norm.bias, norm_eps_);
}

// x [n * (1 + tokens), D]; every picture attends to itself.
at::Tensor ClipVit::block(const Block& block, const at::Tensor& x, VisionAttention* attention) const {
  const at::Tensor n = norm(x, block.layer_norm1);
  const auto split = [&](const Linear& proj) { return proj(n).view({x.size(0), heads_, -1}); };
  const std::vector<int64_t> lengths(x.size(0) / (1 + tokens()), 1 + tokens());
  const at::Tensor q = split(block.q_proj), k = split(block.k_proj);
  const at::Tensor mixed = segment_attention(q, k, split(block.v_proj), lengths);
  if (attention) {
    const auto rows = [&](const at::Tensor& t) {
      return t.view({-1, 1 + tokens(), heads_, t.size(2)}).to(at::kFloat);
    };
    const at::Tensor weights = attention_weights(rows(q).select(1, 0), rows(k));  // [n, H, 1 + tokens]
    attention->received = weights.mean(1).narrow(1, 1, tokens()).flatten();
    attention->keys = rows(k).narrow(1, 1, tokens()).mean(2).flatten(0, 1);
  }
  const at::Tensor attended = x + block.out_proj(mixed);
  const at::Tensor wide = block.fc1(norm(attended, block.layer_norm2));
  return attended + block.fc2(quick_gelu_ ? quick_gelu(wide) : at::gelu(wide));
}

std::vector<at::Tensor> ClipVit::operator()(const at::Tensor& pixel_values, const VisionTaps& taps,
                                            std::vector<VisionAttention>* attention) const {
  const int64_t pictures = pixel_values.size(0) / tokens(), d = hidden_size();
  check(pictures * tokens() == pixel_values.size(0), "CLIP: ", pixel_values.size(0),
        " patches are no whole pictures of ", tokens());
  const at::Tensor patches = patch_embedding_(pixel_values.to(patch_embedding_.weight.options()));
  at::Tensor x = at::cat({class_embedding_.expand({pictures, 1, d}), patches.view({pictures, -1, d})}, 1);
  x = norm((x + position_embedding_).flatten(0, 1), pre_layrnorm_);

  const std::vector<int64_t> tapped = tapped_blocks(taps, last_state());
  if (attention) attention->resize(tapped.size());
  std::vector<at::Tensor> out(taps.states.size());
  for (int64_t i = 0;; ++i) {
    for (size_t s = 0; s < out.size(); ++s)
      if (taps.states[s] == i) out[s] = x.view({pictures, -1, d}).narrow(1, 1, tokens()).reshape({-1, d});
    if (i == last_state()) return out;
    VisionAttention recorded;
    const bool wanted = attention && std::find(tapped.begin(), tapped.end(), i) != tapped.end();
    x = block(blocks_[i], x, wanted ? &recorded : nullptr);
    for (size_t t = 0; wanted && t < tapped.size(); ++t)
      if (tapped[t] == i) (*attention)[t] = recorded;
  }
}

}  // namespace glimpse
