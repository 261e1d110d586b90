#pragma once

#include <ATen/ATen.h>

#include "glimpse/nn/kv_cache.h"

namespace glimpse {

/// Causal attention of the newest T rows of one sequence over its cache (which already holds them).
/// q [T, H, d]; grouped-query heads share cache heads. Returns [T, H * d].
at::Tensor causal_attention(const at::Tensor& q, const LayerCache& cache);

/// Scaled attention logits of one query row over every cached key: q [H, d] -> [H, length] float32.
at::Tensor attention_logits(const at::Tensor& q, const LayerCache& cache);

/// Full attention inside segments of consecutive rows: q, k, v [T, H, d]; `lengths` sum to T. Segments of
/// equal length run as one batch, never as a masked T x T product. Returns [T, H * d].
at::Tensor segment_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const std::vector<int64_t>& lengths);

}  // namespace glimpse
