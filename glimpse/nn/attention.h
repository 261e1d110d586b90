#pragma once

#include <ATen/ATen.h>

#include "glimpse/nn/kv_cache.h"

namespace glimpse {

/// Causal attention of the newest T rows of one sequence over its cache (which already holds them).
/// q [T, H, d]; grouped-query heads share cache heads. Returns [T, H * d].
at::Tensor causal_attention(const at::Tensor& q, const LayerCache& cache);

/// Scaled attention logits of one query row over every key: q [H, d], keys [Hkv, length, d] -> [H, length]
/// float32.
at::Tensor attention_logits(const at::Tensor& q, const at::Tensor& keys);
inline at::Tensor attention_logits(const at::Tensor& q, const LayerCache& cache) {
  return attention_logits(q, cache.keys());
}

/// Softmax weights of one query row per batch entry: q [n, H, d], k [n, T, H, d] -> [n, H, T].
at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k);

/// The attention that each row receives inside its segment of consecutive rows: q, k [T, H, d]; `lengths` sum
/// to T. Mean over heads and over the segment's rows: [T] float32. Runs block by block, so that its memory
/// does not grow with T x T.
at::Tensor received_attention(const at::Tensor& q, const at::Tensor& k, const std::vector<int64_t>& lengths);

/// Full attention inside segments of consecutive rows: q, k, v [T, H, d]; `lengths` sum to T. Segments of
/// equal length run as one batch, never as a masked T x T product. Returns [T, H * d].
at::Tensor segment_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const std::vector<int64_t>& lengths);

}  // namespace glimpse
