#include "glimpse/prune/vip.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {

constexpr double kNormEps = 1e-6;

/// Sizes of the groups, when tokens are sorted by group [n] int64.
std::vector<int64_t> group_lengths(const at::Tensor& sorted_group) {
  const at::Tensor counts = std::get<2>(at::unique_consecutive(sorted_group, false, true));
  return {counts.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>() + counts.numel()};
}

}  // namespace

Vip Vip::load(const VipConfig& c, const Weights& weights, at::Device device) {
  Vip vip;
  vip.config_ = c;
  if (c.type == VipConfig::Type::dummy) return vip;
  const at::TensorOptions options = at::TensorOptions(at::kFloat).device(device);
  const std::string root = "attn_fuser.";
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    Linear layer{weights.take(root + name + ".weight", {out, in}, options), {}};
    if (bias) layer.bias = weights.take(root + name + ".bias", {out}, options);
    return layer;
  };
  const int64_t size = c.fuse_size, cond = c.type == VipConfig::Type::v1 ? c.cond_size : 0,
                both = size + cond;
  check(c.heads > 0 && size % c.heads == 0 && both % c.heads == 0 && (both / c.heads) % 4 == 0,
        "attn_fuse_size ", size, " + visual_cond_size ", cond, " does not divide into ", c.heads,
        " heads whose size is a multiple of 4");
  vip.attn_in_proj_ = linear("attn_in_proj", size, c.attention_size, true);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string n = std::to_string(i), p = "layers." + n + ".";
    if (cond > 0) vip.cond_in_projs_.push_back(linear("cond_in_projs." + n, cond, c.visual_size, true));
    vip.layers_.push_back(
        {weights.take(root + p + "norm1.weight", {size}, options),
         weights.take(root + p + "norm2.weight", {size}, options),
         linear(p + "attn.q_proj", both, both, false), linear(p + "attn.k_proj", both, both, false),
         linear(p + "attn.v_proj", size, size, false), linear(p + "attn.o_proj", size, size, false),
         linear(p + "mlp.gate_proj", 2 * size, size, true), linear(p + "mlp.up_proj", 2 * size, size, true),
         linear(p + "mlp.down_proj", size, 2 * size, true)});
    if (c.deep_supervision || i + 1 == c.layers)
      vip.attn_out_projs_.push_back(linear("attn_out_projs." + n, 1, size, true));
  }
  return vip;
}

// No parameters: the heads' mean as a distribution over each image's tokens, stretched to [0, 1].
at::Tensor Vip::dummy(const at::Tensor& attention, const at::Tensor& group) const {
  at::Tensor out = at::empty({attention.size(0)}, attention.options());
  const at::Tensor mean = attention.mean(1);
  const at::Tensor images = std::get<0>(at::_unique(group));
  for (int64_t i = 0; i < images.size(0); ++i) {
    const at::Tensor index = to_device((group == images[i]).nonzero().squeeze(1), mean.device()),
                     own = mean.index_select(0, index);
    const at::Tensor p = config_.log_softmax_input ? own.exp() : own.softmax(0);
    const at::Tensor low = p.min(), span = (p.max() - low).clamp_min(1e-30);
    out.index_copy_(0, index, (p - low) / span);
  }
  return out.unsqueeze(0);
}

at::Tensor Vip::operator()(const at::Tensor& attention, const std::vector<at::Tensor>& states,
                           const VipPlaces& places) const {
  if (config_.type == VipConfig::Type::dummy) return dummy(attention, places.group);
  const int64_t heads = config_.heads;
  // Groups become runs of consecutive rows for the attention; the result goes back to the given order.
  const at::Device device = attention.device();
  const auto [group, host_order] = places.group.cpu().sort(/*stable=*/true, 0, false);
  const Segments lengths(group_lengths(group));
  const bool in_order = host_order.equal(at::arange(host_order.size(0)));
  const at::Tensor order = in_order ? at::Tensor() : to_device(host_order, device);
  const auto sorted = [&](const at::Tensor& t) {
    return in_order ? t.to(at::kFloat) : t.to(at::kFloat).index_select(0, order);
  };

  // A GPU's fused attention in float32 costs as much as several layers of the language model. The modules of
  // a bf16 model were made in bf16 (method.md section 4), so their attention may run in it.
  const bool narrow = attention.is_cuda() && !states.empty() && states[0].scalar_type() == at::kBFloat16 &&
                      !at::GradMode::is_enabled();
  const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Segments& segments) {
    const auto operand = [&](const at::Tensor& t) { return narrow ? t.to(at::kBFloat16) : t; };
    return segment_attention(operand(q), operand(k), operand(v), segments).to(at::kFloat);
  };
  const int64_t head_dim = layers_[0].q_proj.weight.size(0) / heads;
  const at::Tensor frequencies = to_device(inverse_frequencies(head_dim / 2, 10000.0), device);
  const Rope rope = rope_from_angles(
      at::cat({at::outer(sorted(places.row), frequencies), at::outer(sorted(places.col), frequencies)}, 1));

  at::Tensor x = attn_in_proj_(sorted(attention));
  std::vector<at::Tensor> logits;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const at::Tensor n = rms_norm(x, layer.norm1, kNormEps);
    const at::Tensor both =
        cond_in_projs_.empty() ? n : at::cat({n, cond_in_projs_[i](sorted(states[i]))}, 1);
    const auto split = [&](const at::Tensor& t) { return t.view({t.size(0), heads, -1}); };
    const at::Tensor q = apply_rope(split(layer.q_proj(both)), rope);
    const at::Tensor k = apply_rope(split(layer.k_proj(both)), rope);
    // Values are narrower than queries; fused attention wants one width.
    const at::Tensor v = split(layer.v_proj(n));
    const at::Tensor wide = at::constant_pad_nd(v, {0, head_dim - v.size(2)});
    const at::Tensor mixed = split(attend(q, k, wide, lengths)).narrow(2, 0, v.size(2)).flatten(1);
    const at::Tensor m = add_rms_norm(x, layer.o_proj(mixed), layer.norm2, kNormEps);
    x = x + layer.down_proj(silu_mul(layer.gate_proj(m), layer.up_proj(m)));
    const bool last = i + 1 == layers_.size();
    if (config_.deep_supervision || last)
      logits.push_back(attn_out_projs_[last ? attn_out_projs_.size() - 1 : i](x).squeeze(1));
  }
  return in_order ? at::stack(logits) : at::stack(logits).index_select(1, order.argsort());
}

}  // namespace glimpse
