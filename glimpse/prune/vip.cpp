#include "glimpse/prune/vip.h"

#include <algorithm>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {

constexpr double kNormEps = 1e-6;

// n tokens by group, so that groups are runs of rows, and how long these are.
struct Grouped {
  std::vector<int64_t> order, lengths;
};
Grouped by_group(const std::vector<int64_t>& group) {
  Grouped out{std::vector<int64_t>(group.size()), {}};
  std::iota(out.order.begin(), out.order.end(), int64_t{0});
  std::stable_sort(out.order.begin(), out.order.end(),
                   [&](int64_t a, int64_t b) { return group[a] < group[b]; });
  int64_t last = -1;
  for (const int64_t token : out.order) {
    if (group[token] != last) out.lengths.push_back(0);
    ++out.lengths.back();
    last = group[token];
  }
  return out;
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
at::Tensor Vip::dummy(const at::Tensor& attention, const std::vector<int64_t>& group) const {
  const Grouped images = by_group(group);
  const at::Tensor order = index_tensor(images.order, attention.device());
  const at::Tensor mean = attention.mean(1).index_select(0, order);
  at::Tensor out = at::empty_like(mean);
  int64_t first = 0;
  for (const int64_t length : images.lengths) {
    const at::Tensor own = mean.narrow(0, first, length);
    const at::Tensor p = config_.log_softmax_input ? own.exp() : own.softmax(0);
    const at::Tensor low = p.min(), span = (p.max() - low).clamp_min(1e-30);
    out.index_copy_(0, order.narrow(0, first, length), (p - low) / span);
    first += length;
  }
  return out.unsqueeze(0);
}

void Vip::use_bf16() {
  if (layers_.empty()) return;
  const at::Tensor& any = layers_[0].q_proj.weight;
  if (!any.is_cuda() && (!any.is_cpu() || bf16_gemm_path() == GemmPath::widened)) return;
  operands_ = at::kBFloat16;
  const auto narrow = [](Linear& layer) {
    layer.weight = layer.weight.to(at::kBFloat16);
    if (layer.bias.defined()) layer.bias = layer.bias.to(at::kBFloat16);
  };
  for (Linear& layer : cond_in_projs_) narrow(layer);
  for (Layer& layer : layers_)
    for (Linear Layer::*const part : {&Layer::q_proj, &Layer::k_proj, &Layer::v_proj, &Layer::o_proj,
                                      &Layer::gate_proj, &Layer::up_proj, &Layer::down_proj})
      narrow(layer.*part);
}

at::Tensor Vip::operator()(const at::Tensor& attention, const std::vector<at::Tensor>& states,
                           const VipPlaces& places) const {
  if (config_.type == VipConfig::Type::dummy) return dummy(attention, places.group);
  const int64_t heads = config_.heads;
  // Groups become runs of consecutive rows for the attention; the result goes back to the given order.
  const Grouped groups = by_group(places.group);
  const Segments lengths(groups.lengths);
  const bool in_order = std::is_sorted(places.group.begin(), places.group.end());
  std::vector<int64_t> back(groups.order.size());
  for (size_t i = 0; i < back.size(); ++i) back[groups.order[i]] = static_cast<int64_t>(i);
  const auto tables = index_tensors({places.row, places.col, groups.order, back}, attention.device());
  const auto sorted = [&](const at::Tensor& t) { return in_order ? t : t.index_select(0, tables[2]); };
  const int64_t head_dim = layers_[0].q_proj.weight.size(0) / heads;
  const at::Tensor frequencies = inverse_frequencies(head_dim / 2, 10000.0, attention.device());
  const auto angles = [&](const at::Tensor& place) {
    return at::outer(sorted(place.to(at::kFloat)), frequencies);
  };
  const Rope rope = rope_from_angles(at::cat({angles(tables[0]), angles(tables[1])}, 1));
  const auto split = [&](const at::Tensor& t) { return t.view({t.size(0), heads, -1}); };

  at::Tensor x = attn_in_proj_(sorted(attention.to(at::kFloat)));
  std::vector<at::Tensor> logits;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const at::Tensor n = rms_norm(x, layer.norm1, kNormEps).to(operands_);
    const at::Tensor both =
        cond_in_projs_.empty() ? n : at::cat({n, cond_in_projs_[i](sorted(states[i].to(operands_)))}, 1);
    const auto [queries, keys] = linears(both, layer.q_proj, layer.k_proj);
    const at::Tensor q = apply_rope(split(queries), rope), k = apply_rope(split(keys), rope);
    const at::Tensor mixed = segment_attention(q, k, split(layer.v_proj(n)), lengths);
    const at::Tensor m =
        add_rms_norm(x, layer.o_proj(mixed).to(at::kFloat), layer.norm2, kNormEps).to(operands_);
    const auto [gate, up] = linears(m, layer.gate_proj, layer.up_proj);
    x = x + layer.down_proj(silu_mul(gate, up));
    const bool last = i + 1 == layers_.size();
    if (config_.deep_supervision || last)
      logits.push_back(attn_out_projs_[last ? attn_out_projs_.size() - 1 : i](x).squeeze(1));
  }
  return in_order ? at::stack(logits) : at::stack(logits).index_select(1, tables[3]);
}

double VipConfig::operations(double n) const {
  if (type == Type::dummy) return 0;
  const auto product = [](double rows, double in, double out) { return 2 * rows * in * out; };
  const double size = fuse_size, cond = type == Type::v1 ? cond_size : 0, both = size + cond;
  const double projections = 2 * product(n, both, both) + 2 * product(n, size, size);
  const double layer = product(n, visual_size, cond) + projections + 2 * n * n * (both + size) +
                       3 * product(n, size, 2 * size);
  return product(n, attention_size, size) + layers * layer + product(n, size, 1);
}

}  // namespace glimpse
