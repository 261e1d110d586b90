#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// CUDA kernels on raw rows; nn/cuda_ops.h gives them tensors. bf16 values are passed as their 16 bits. All
/// arithmetic is float32. They start on `stream` and return at once.
namespace glimpse::cuda {

using bf16 = uint16_t;

/// rows x [rows, n]: out = x / sqrt(mean(x^2) + eps), rounded to the type, times w. If `delta` is given, x +=
/// delta first.
template <class T>
void rms_norm(T* x, const T* delta, const T* w, float eps, int64_t rows, int64_t n, T* out,
              cudaStream_t stream);

/// out = silu(gate) * up.
template <class T>
void silu_mul(const T* gate, const T* up, T* out, int64_t n, cudaStream_t stream);

/// Rotates the heads of x [tokens, heads, 2 * half] in place by cos, sin [tokens, half].
template <class T>
void rotate(T* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t half,
            cudaStream_t stream);

/// Copies rows index[0 ... count) of every head of keys and values, `from_stride` elements apart, to the
/// first rows of others.
template <class T>
void gather_rows(const T* keys, const T* values, int64_t from_stride, const int64_t* index, int64_t count,
                 int64_t heads, int64_t d, T* to_keys, T* to_values, int64_t to_stride, cudaStream_t stream);

/// Rows that few_row_products() takes at once, and weights.
inline constexpr int64_t max_few_rows = 8, max_factors = 3;

/// A weight [n, k], perhaps a bias [n], and where the product [m, n] goes.
template <class T>
struct Factor {
  const T *weight, *bias;
  T* out;
  int64_t n;
};

/// Products of x [m, k], m <= max_few_rows, with several weights, which are read at memory speed. k is a
/// multiple of 16 bytes, all rows are aligned to them.
template <class T>
void few_row_products(const T* x, int64_t m, int64_t k, const Factor<T>* factors, int64_t count,
                      cudaStream_t stream);

/// One layer's cache of one sequence, in device memory.
struct CacheEntry {
  void *keys, *values;  ///< [Hkv, capacity, d]
  int64_t head_stride;  ///< elements from a head to the next
  int64_t length;       ///< rows, the newest included
};

/// Shapes of a decoding step: the newest row of each of `sequences`.
struct DecodeShape {
  int64_t sequences, heads, kv_heads, d;
};

/// Rotates q [S, H, d] in place and k [S, Hkv, d] by cos, sin [S, d / 2], and writes the rotated k and v [S,
/// Hkv, d] as the newest rows of the caches.
template <class T>
void rotate_and_append(T* q, const T* k, const T* v, const float* cos, const float* sin,
                       const CacheEntry* caches, const DecodeShape& shape, cudaStream_t stream);

/// How a decoding step's caches are cut, so that enough blocks work: parts of `keys` keys, `count` of the
/// longest.
struct Parts {
  int64_t keys, count;
};
Parts decode_parts(const DecodeShape& shape, int64_t longest);
/// Floats of scratch memory that decode_attention() needs.
int64_t decode_scratch(const DecodeShape& shape, const Parts& parts);

/// out [S, H, d] = attention of q over each sequence's cache. d is a multiple of 8, at most 256.
template <class T>
void decode_attention(const T* q, const CacheEntry* caches, const DecodeShape& shape, const Parts& parts,
                      float* scratch, T* out, cudaStream_t stream);

}  // namespace glimpse::cuda
