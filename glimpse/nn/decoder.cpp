#include "glimpse/nn/decoder.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"

namespace glimpse {

Decoder Decoder::load(const DecoderConfig& c, const Weights& weights, const std::string& prefix,
                      const std::string& head, at::TensorOptions options, const WeightOptions& how,
                      const MakeHeadStep& head_step) {
  Decoder model;
  check(c.windows.empty() || options.device().is_cpu(),
        "sliding-window attention is not supported on a device of its own; --device cpu runs this model");
  model.config_ = c;
  model.prefix_ = prefix;
  const std::string embedding = prefix + "embed_tokens.weight";
  const FewBits* small = keeps_few_bits(options, how)
                             ? weights.take_few_bits(embedding, {c.vocab_size, c.hidden_size})
                             : nullptr;
  if (small)
    model.embedding_ = *small;
  else
    model.embed_tokens_ = weights.take(embedding, {c.vocab_size, c.hidden_size}, options);
  model.options_ = small ? options : model.embed_tokens_.options();
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string p = prefix + "layers." + std::to_string(l) + ".";
    const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
      return take_linear(weights, p + name, out, in, bias, options, how);
    };
    const int64_t d = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                  ff = c.intermediate_size;
    model.layers_.push_back({weights.take(p + "input_layernorm.weight", {d}, options),
                             weights.take(p + "post_attention_layernorm.weight", {d}, options),
                             linear("self_attn.q_proj", q, d, c.attention_bias),
                             linear("self_attn.k_proj", kv, d, c.attention_bias),
                             linear("self_attn.v_proj", kv, d, c.attention_bias),
                             linear("self_attn.o_proj", d, q, false), linear("mlp.gate_proj", ff, d, false),
                             linear("mlp.up_proj", ff, d, false), linear("mlp.down_proj", d, ff, false),
                             head_step ? head_step(weights, p, options) : HeadStep()});
  }
  model.norm_ = weights.take(prefix + "norm.weight", {c.hidden_size}, options);
  WeightOptions for_head = how;
  if (how.format == WeightOptions::Format::int4) for_head.format = WeightOptions::Format::int8;
  const bool own = weights.contains(head + ".weight_scale") || !c.tied_head;
  if (own)
    model.lm_head_ = take_linear(weights, head, c.vocab_size, c.hidden_size, false, options, for_head);
  else if (small)
    model.lm_head_.low_bit =
        kept_weight(weights, head, embedding, c.vocab_size, c.hidden_size, options, for_head);
  else
    model.lm_head_ = as_asked({model.embed_tokens_, {}}, head, for_head);
  return model;
}

template <class Self, class Visit>
void Decoder::visit_linears_of(Self& self, const Visit& visit) {
  constexpr std::pair<const char*, Linear Layer::*> kLinears[] = {
      {"self_attn.q_proj", &Layer::q_proj}, {"self_attn.k_proj", &Layer::k_proj},
      {"self_attn.v_proj", &Layer::v_proj}, {"self_attn.o_proj", &Layer::o_proj},
      {"mlp.gate_proj", &Layer::gate_proj}, {"mlp.up_proj", &Layer::up_proj},
      {"mlp.down_proj", &Layer::down_proj}};
  for (size_t l = 0; l < self.layers_.size(); ++l)
    for (const auto& [name, linear] : kLinears)
      visit(self.prefix_ + "layers." + std::to_string(l) + "." + name, self.layers_[l].*linear);
}

void Decoder::visit_linears(const std::function<void(const std::string&, Linear&)>& visit) {
  visit_linears_of(*this, visit);
}

void Decoder::visit_linears(const std::function<void(const std::string&, const Linear&)>& visit) const {
  visit_linears_of(*this, visit);
}

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  if (!embedding_) return embed_tokens_.index_select(0, ids);
  const at::Tensor places = ids.to(at::kLong).contiguous();
  at::Tensor rows = at::empty({places.size(0), config_.hidden_size}, options_);
  parallel_tasks(places.size(0), [&](int64_t i) {
    const int64_t id = places.const_data_ptr<int64_t>()[i];
    invariant(id >= 0 && id < config_.vocab_size, "a token of the vocabulary");
    rows[i].copy_(embedding_->rows(id, 1)[0]);
  });
  return rows;
}

// Mixed values [R, H * d] of the normed rows n [R, D]; appends to the caches.
at::Tensor Decoder::attend(int64_t l, const at::Tensor& n, const RaggedBatch& batch) const {
  const Layer& layer = layers_[l];
  const int64_t d = config_.head_dim;
  const auto [wide_q, wide_k, wide_v] = linears(n, layer.q_proj, layer.k_proj, layer.v_proj);
  at::Tensor q = wide_q.view({-1, config_.heads, d}), k = wide_k.view({-1, config_.kv_heads, d});
  const at::Tensor v = wide_v.view({-1, config_.kv_heads, d});
  if (layer.head_step) layer.head_step(q, k);
  if (batch.table) return cuda::decode_attention(q, k, v, batch.rope, *batch.table, l);
  q = apply_rope(q, batch.rope);
  k = apply_rope(k, batch.rope);

  const int64_t window = config_.window(l);
  // Prompts from their first rows on attend among the rows at hand, all in one call where there is one for
  // them.
  Segments segments;
  bool fresh = batch.sequences.size() > 1 && window == 0 && has_flash(q, k, v);
  for (const SequenceRows& sequence : batch.sequences) {
    fresh = fresh && sequence.apart <= 1 && sequence.cache->layers[l].length() == 0;
    segments.lengths.push_back(sequence.count);
  }
  std::vector<at::Tensor> mixed;
  int64_t row = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    LayerCache& cache = sequence.cache->layers[l];
    // Of the rows that stand apart the first goes with those before, each other by itself.
    int64_t count = sequence.count - std::max<int64_t>(sequence.apart - 1, 0);
    for (int64_t first = 0; first < sequence.count; first += std::exchange(count, 1)) {
      const auto own = [&](const at::Tensor& t) { return t.narrow(0, row + first, count); };
      cache.append(own(k), own(v), sequence.more);
      if (!fresh) mixed.push_back(causal_attention(own(q), cache, window));
      for (const AttentionTap& tap : sequence.taps)
        if (const int64_t after = first + count - 1 - tap.row; after >= 0 && after < count)
          *tap.logits = attention_logits(
              q[row + tap.row], cache.keys().narrow(1, 0, cache.length() - (tap.all_keys ? 0 : after)));
      if (sequence.apart > 0) cache.drop_last(1);
    }
    if (sequence.more == 0) cache.close();
    row += sequence.count;
  }
  if (fresh) return segment_attention(q, k, v, segments, /*causal=*/true);
  return mixed.size() == 1 ? mixed[0] : at::cat(mixed);
}

at::Tensor Decoder::layer(int64_t l, at::Tensor x, const RaggedBatch& batch) const {
  const Layer& layer = layers_[l];
  const at::Tensor n = rms_norm(x, layer.input_layernorm, config_.rms_norm_eps);
  at::Tensor mixed = attend(l, n, batch);
  if (batch.asked.defined()) {
    mixed = mixed.index_select(0, batch.asked);
    x = x.index_select(0, batch.asked);
  }
  const at::Tensor m =
      add_rms_norm(x, layer.o_proj(mixed), layer.post_attention_layernorm, config_.rms_norm_eps);
  const auto [gate, up] = linears(m, layer.gate_proj, layer.up_proj);
  const at::Tensor down = layer.down_proj(silu_mul(gate, up));
  return at::GradMode::is_enabled() ? x + down : x.add_(down);
}

at::Tensor Decoder::last_row_attention(int64_t l, const at::Tensor& x, const Rope* rope) const {
  const Layer& layer = layers_[l];
  const at::Tensor n = rms_norm(x, layer.input_layernorm, config_.rms_norm_eps),
                   last = n.narrow(0, n.size(0) - 1, 1);
  at::Tensor q = layer.q_proj(last).view({1, config_.heads, config_.head_dim});
  at::Tensor k = layer.k_proj(n).view({n.size(0), config_.kv_heads, config_.head_dim});
  if (layer.head_step) layer.head_step(q, k);
  if (rope) {
    q = apply_rope(q, {rope->cos.narrow(0, n.size(0) - 1, 1), rope->sin.narrow(0, n.size(0) - 1, 1)});
    k = apply_rope(k, *rope);
  }
  return attention_logits(q[0], k.transpose(0, 1)).softmax(1).mean(0);
}

at::Tensor Decoder::logits(const at::Tensor& x) const {
  return lm_head_(rms_norm(x, norm_, config_.rms_norm_eps)).to(at::kFloat);
}

}  // namespace glimpse
