#pragma once

#include <ATen/ATen.h>

#include <span>
#include <vector>

#include "glimpse/nn/dense.h"
#include "glimpse/nn/kv_cache.h"
#include "glimpse/nn/rotary.h"

/// Our CUDA kernels on tensors. A program built without CUDA has none of them.
namespace glimpse::cuda {

/// Leaves the work to libtorch's operations (for tests and measurements), or not.
void use_kernels(bool use);

/// Whether the kernels can take `x`: contiguous bf16 or float32 on a CUDA device, no gradients.
bool has_kernel(const at::Tensor& x);
/// Whether they can take all of these together, which then have one type.
template <class... Others>
bool has_kernel(const at::Tensor& x, const Others&... others) {
  return has_kernel(x) && ((has_kernel(others) && others.scalar_type() == x.scalar_type()) && ...);
}

/// As the functions of these names in nn/ops.h and nn/rotary.h say; all operands have the same type.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor add_rms_norm(at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps);
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up);
at::Tensor apply_rope(const at::Tensor& x, const Rope& rope);

/// Whether few_row_products() takes rows x [m, k] and this weight.
bool has_few_row_kernel(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// Products of x [m, k] with up to three weights in one pass over them: [m, n] each.
std::vector<at::Tensor> few_row_products(const at::Tensor& x, std::span<const DenseWeight> weights);

/// Copies the rows `index` [n] int64 of keys and values [Hkv, capacity, d] to the beginning of others.
void gather_rows(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& index,
                 at::Tensor& to_keys, at::Tensor& to_values);

/// The caches of a decoding step, one new row per sequence, as kernels see them: one kernel then serves all
/// sequences, whose caches differ in place and length.
struct DecodeTable {
  at::Tensor entries;            ///< [layers, sequences, 4] int64: see CacheEntry in nn/cuda_kernels.h
  std::vector<int64_t> longest;  ///< per layer: no cache has more rows, the new one included

  /// Whether there are kernels for such caches.
  static bool possible(const KvCache& cache);
  /// Makes room for a new row in every layer of every cache. The entries are in host memory, while the
  /// kernels read those on the device.
  static DecodeTable reserve(std::span<KvCache* const> caches);
};

/// Rotates q [S, H, d] and k [S, Hkv, d], appends k and v to layer `l`'s caches, and lets every sequence's
/// row attend to its own cache. Returns [S, H * d].
at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Rope& rope,
                            const DecodeTable& table, int64_t l);

}  // namespace glimpse::cuda
