#pragma once

#include <ATen/ATen.h>

#include <initializer_list>
#include <utility>
#include <vector>

#include "glimpse/nn/kv_cache.h"

namespace glimpse {

/// Whether libtorch's flash attention takes these operands: bf16 on a CUDA device, no gradients.
bool has_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

/// Causal attention of the newest T rows of one sequence over its cache (which already holds them).
/// q [T, H, d]; grouped-query heads share cache heads. `window`: a row sees the newest so many of the rows up
/// to itself, 0: all of them. Returns [T, H * d].
at::Tensor causal_attention(const at::Tensor& q, const LayerCache& cache, int64_t window = 0);

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

/// Consecutive rows that attend among themselves, one segment after the other.
struct Segments {
  std::vector<int64_t> lengths;

  Segments() = default;
  Segments(std::vector<int64_t> of) : lengths(std::move(of)) {}
  Segments(std::initializer_list<int64_t> of) : lengths(of) {}
  int64_t longest() const;
  /// Where each begins, and the end: [segments + 1] int32 on `device`, made once. Not for several threads.
  const at::Tensor& offsets(at::Device device) const;

 private:
  mutable at::Tensor offsets_;
};

/// Attention inside segments: q [T, H, d], k [T, Hkv, d], v [T, Hkv, dv <= d]; the lengths sum to T.
/// `causal`: a row sees those of its segment up to itself; else all of them. Never a masked T x T product.
/// Returns [T, H * dv].
at::Tensor segment_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const Segments& segments, bool causal = false);

}  // namespace glimpse
