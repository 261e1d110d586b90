#include "glimpse/models/clip_block.h"

#include "glimpse/base/check.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

int64_t clip_number(const nlohmann::json& config, const char* key, int64_t fallback) {
  const int64_t value = config.value(key, fallback);
  check(value > 0 && value < (1 << 24), "CLIP config: ", key, " is ", value);
  return value;
}

ClipShape ClipShape::read(const nlohmann::json& c, ClipShape shape) {
  shape.hidden = clip_number(c, "hidden_size", shape.hidden);
  shape.intermediate = clip_number(c, "intermediate_size", shape.intermediate);
  shape.layers = clip_number(c, "num_hidden_layers", shape.layers);
  shape.heads = clip_number(c, "num_attention_heads", shape.heads);
  shape.norm_eps = c.value("layer_norm_eps", shape.norm_eps);
  const auto act = c.value("hidden_act", std::string("quick_gelu"));
  check(act == "quick_gelu" || act == "gelu", "CLIP config: hidden_act '", act,
        "' is not supported, only quick_gelu and gelu");
  shape.quick_gelu = act == "quick_gelu";
  check(shape.hidden % shape.heads == 0, "CLIP config: hidden_size ", shape.hidden,
        " and num_attention_heads ", shape.heads, " do not fit together");
  return shape;
}

ClipNorm ClipNorm::load(const ClipTensors& from, const std::string& name, const ClipShape& shape) {
  return {from.take(name + ".weight", {shape.hidden}), from.take(name + ".bias", {shape.hidden}),
          shape.norm_eps};
}

at::Tensor ClipNorm::operator()(const at::Tensor& x) const {
  return layer_norm(x, weight, bias, eps);
}

ClipBlock ClipBlock::load(const ClipTensors& from, int64_t index, const ClipShape& shape) {
  const std::string p = "encoder.layers." + std::to_string(index) + ".";
  const int64_t d = shape.hidden, ff = shape.intermediate;
  return {ClipNorm::load(from, p + "layer_norm1", shape),
          ClipNorm::load(from, p + "layer_norm2", shape),
          from.linear(p + "self_attn.q_proj", d, d),
          from.linear(p + "self_attn.k_proj", d, d),
          from.linear(p + "self_attn.v_proj", d, d),
          from.linear(p + "self_attn.out_proj", d, d),
          from.linear(p + "mlp.fc1", ff, d),
          from.linear(p + "mlp.fc2", d, ff),
          shape.heads,
          shape.quick_gelu};
}

at::Tensor ClipBlock::mlp(const at::Tensor& x) const {
  const at::Tensor wide = fc1(x);
  return fc2(quick_gelu ? glimpse::quick_gelu(wide) : at::gelu(wide));
}

}  // namespace glimpse
