#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "glimpse/nn/cuda_kernels.h"

// What the kernels have in common; for the .cu files beside this one.
namespace glimpse::cuda {

namespace {

constexpr int kWarp = 32;

__device__ float widen(bf16 x) {
  return __uint_as_float(uint32_t{x} << 16);
}
__device__ float widen(float x) {
  return x;
}

template <class T>
__device__ T narrow(float x);
template <>
__device__ bf16 narrow<bf16>(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
template <>
__device__ float narrow<float>(float x) {
  return x;
}

// Neighbours in a row that are read and written at once, 16 bytes unless said otherwise.
template <class T, int kSize = 16 / sizeof(T)>
struct alignas(kSize * sizeof(T)) Vector {
  static constexpr int size = kSize;
  T at[size];
};

template <class T, int kSize = Vector<T>::size>
__device__ Vector<T, kSize> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kSize>*>(from);
}

// For what is read once: past the first-level cache.
template <class T>
__device__ Vector<T> stream_in(const T* from) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
  Vector<T> out;
  *reinterpret_cast<uint4*>(&out) = bits;
  return out;
}

template <class T, int kSize>
__device__ void store(T* to, const Vector<T, kSize>& v) {
  *reinterpret_cast<Vector<T, kSize>*>(to) = v;
}

__device__ float warp_sum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

__device__ float warp_max(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Turns the pair (a, b).
template <class T>
__device__ void rotate_pair(T& a, T& b, float cos, float sin) {
  const float wide_a = widen(a), wide_b = widen(b);
  a = narrow<T>(wide_a * cos - wide_b * sin);
  b = narrow<T>(wide_b * cos + wide_a * sin);
}

inline int blocks_for(int64_t work, int64_t per_block) {
  return static_cast<int>((work + per_block - 1) / per_block);
}

}  // namespace

}  // namespace glimpse::cuda
