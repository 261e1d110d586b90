#include <algorithm>
#include <cmath>

#include "glimpse/nn/cuda_common.cuh"

namespace glimpse::cuda {

namespace {

// A block per head of a sequence: first those of the queries, then those of keys and values.
template <class T>
__global__ void rotate_and_append_kernel(T* q, const T* k, const T* v, const float* cos, const float* sin,
                                         const CacheEntry* caches, int heads, int kv_heads, int half) {
  const int64_t s = blockIdx.y, d = 2 * half;
  const int head = blockIdx.x;
  cos += s * half;
  sin += s * half;
  if (head < heads) {
    q += (s * heads + head) * d;
    for (int i = threadIdx.x; i < half; i += blockDim.x) rotate_pair(q[i], q[half + i], cos[i], sin[i]);
    return;
  }
  const CacheEntry cache = caches[s];
  const int64_t from = (s * kv_heads + head - heads) * d,
                to = (head - heads) * cache.head_stride + (cache.length - 1) * d;
  T* const keys = static_cast<T*>(cache.keys) + to;
  T* const values = static_cast<T*>(cache.values) + to;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    T pair[2] = {k[from + i], k[from + half + i]};
    rotate_pair(pair[0], pair[1], cos[i], sin[i]);
    keys[i] = pair[0];
    keys[half + i] = pair[1];
    values[i] = v[from + i];
    values[half + i] = v[from + half + i];
  }
}

constexpr int kDecodeWarps = 4, kQuad = 4, kMostKeys = 512, kGroup = 8;

// Threads of a block, scores of its part for the query heads that share the key head, the sums of its warps.
size_t decode_shared_bytes(int64_t keys, int64_t d) {
  return sizeof(float) * static_cast<size_t>(kGroup * d + kGroup * keys + kDecodeWarps * kGroup * d);
}

// One part of one sequence's keys for up to kGroup query heads that share a key head. `partial`: per query
// head and part the unnormalised mix [d], then the largest score and the sum of the exponentials.
template <class T, int kPerLane>
__global__ void decode_kernel(const T* q, const CacheEntry* caches, int heads, int kv_heads, int d,
                              int part_keys, int parts, float* partial, T* out) {
  constexpr int size = Vector<T>::size;
  extern __shared__ float4 shared[];
  const int part = blockIdx.x, s = blockIdx.z, group = heads / kv_heads,
            chunks = (group + kGroup - 1) / kGroup;
  const int kv_head = blockIdx.y / chunks, first_head = kv_head * group + blockIdx.y % chunks * kGroup,
            own_heads = min(kGroup, (kv_head + 1) * group - first_head);
  const CacheEntry cache = caches[s];
  const int first = part * part_keys, count = min(part_keys, static_cast<int>(cache.length) - first);
  if (count <= 0) return;
  float* const queries = reinterpret_cast<float*>(shared);  // [kGroup, d]
  float* const scores = queries + kGroup * d;               // [part_keys, kGroup]
  float* const sums = scores + kGroup * part_keys;          // [kDecodeWarps, kGroup, d]
  __shared__ float largest[kGroup], total[kGroup];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  const float scale = rsqrtf(static_cast<float>(d));
  for (int i = threadIdx.x; i < kGroup * d; i += blockDim.x)
    queries[i] = i / d < own_heads ? widen(q[(int64_t{s} * heads + first_head) * d + i]) * scale : 0.0f;
  __syncthreads();

  // Scores: four lanes share a key, 16 bytes at a time.
  const T* const keys = static_cast<const T*>(cache.keys) + kv_head * cache.head_stride + int64_t{first} * d;
  for (int base = warp * (kWarp / kQuad); base < count; base += kDecodeWarps * (kWarp / kQuad)) {
    const int key = base + lane / kQuad;
    float sum[kGroup] = {};
    if (key < count)
      for (int i = lane % kQuad * size; i < d; i += kQuad * size) {
        const Vector<T> k = stream_in(keys + int64_t{key} * d + i);
#pragma unroll
        for (int g = 0; g < kGroup; ++g)
#pragma unroll
          for (int j = 0; j < size; j += 4) {
            const float4 query = *reinterpret_cast<const float4*>(queries + g * d + i + j);
            sum[g] += widen(k.at[j]) * query.x + widen(k.at[j + 1]) * query.y + widen(k.at[j + 2]) * query.z +
                      widen(k.at[j + 3]) * query.w;
          }
      }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      sum[g] += __shfl_xor_sync(~0u, sum[g], 1);
      sum[g] += __shfl_xor_sync(~0u, sum[g], 2);
      if (key < count && g % kQuad == lane % kQuad) scores[key * kGroup + g] = sum[g];
    }
  }
  __syncthreads();

  for (int g = warp; g < own_heads; g += kDecodeWarps) {
    float* const own = scores + g;
    float most = -INFINITY, sum = 0;
    for (int i = lane; i < count; i += kWarp) most = fmaxf(most, own[i * kGroup]);
    most = warp_max(most);
    for (int i = lane; i < count; i += kWarp) sum += own[i * kGroup] = __expf(own[i * kGroup] - most);
    sum = warp_sum(sum);
    if (lane == 0) {
      largest[g] = most;
      total[g] = sum;
    }
  }
  __syncthreads();

  // Values: a warp takes every kDecodeWarps-th key, a lane its numbers of the row.
  const T* const values =
      static_cast<const T*>(cache.values) + kv_head * cache.head_stride + int64_t{first} * d;
  float mix[kGroup][kPerLane] = {};
  const int column = lane * kPerLane;
  if (column < d) {
#pragma unroll 4
    for (int key = warp; key < count; key += kDecodeWarps) {
      const Vector<T, kPerLane> v = load<T, kPerLane>(values + int64_t{key} * d + column);
      const Vector<float, kGroup> p = load<float, kGroup>(scores + key * kGroup);
#pragma unroll
      for (int g = 0; g < kGroup; ++g)
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) mix[g][j] += p.at[g] * widen(v.at[j]);
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g)
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) sums[(warp * kGroup + g) * d + column + j] = mix[g][j];
  }
  __syncthreads();

  for (int i = threadIdx.x; i < own_heads * d; i += blockDim.x) {
    const int g = i / d;
    float sum = 0;
    for (int w = 0; w < kDecodeWarps; ++w) sum += sums[w * kGroup * d + i];
    const int64_t row = int64_t{s} * heads + first_head + g;
    if (parts == 1) {
      out[row * d + i % d] = narrow<T>(sum / total[g]);
    } else {
      float* const to = partial + (row * parts + part) * (d + 2);
      to[i % d] = sum;
      if (i % d == 0) {
        to[d] = largest[g];
        to[d + 1] = total[g];
      }
    }
  }
}

// A block of kCombine threads per query head of a sequence; a thread per column.
constexpr int kCombine = 128;

template <class T>
__global__ void combine_kernel(const float* partial, const CacheEntry* caches, int heads, int d,
                               int part_keys, int parts, T* out) {
  const int64_t row = int64_t{blockIdx.y} * heads + blockIdx.x;
  const int own = (static_cast<int>(caches[blockIdx.y].length) + part_keys - 1) / part_keys, stride = d + 2;
  __shared__ float scales[kCombine], warps[kCombine / kWarp];
  partial += row * parts * stride;
  float most = -INFINITY;
  for (int p = threadIdx.x; p < own; p += kCombine) most = fmaxf(most, partial[p * stride + d]);
  most = warp_max(most);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kCombine / kWarp; ++w) most = fmaxf(most, warps[w]);

  // Heads of up to 256 numbers: two columns a thread at most.
  float sums[2] = {}, weight = 0;
  for (int base = 0; base < own; base += kCombine) {
    const int count = min(kCombine, own - base);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      const float* const from = partial + (base + threadIdx.x) * stride + d;
      scales[threadIdx.x] = __expf(from[0] - most);
      weight += scales[threadIdx.x] * from[1];
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = threadIdx.x + c * kCombine;
      if (column >= d) break;
#pragma unroll 8
      for (int p = 0; p < count; ++p) sums[c] += scales[p] * partial[(base + p) * stride + column];
    }
  }
  weight = warp_sum(weight);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = weight;
  __syncthreads();
  weight = 0;
#pragma unroll
  for (int w = 0; w < kCombine / kWarp; ++w) weight += warps[w];
#pragma unroll
  for (int c = 0; c < 2; ++c)
    if (const int column = threadIdx.x + c * kCombine; column < d)
      out[row * d + column] = narrow<T>(sums[c] / weight);
}

}  // namespace

template <class T>
void rotate_and_append(T* q, const T* k, const T* v, const float* cos, const float* sin,
                       const CacheEntry* caches, const DecodeShape& shape, cudaStream_t stream) {
  const dim3 grid(static_cast<int>(shape.heads + shape.kv_heads), static_cast<int>(shape.sequences));
  rotate_and_append_kernel<<<grid, 64, 0, stream>>>(q, k, v, cos, sin, caches, static_cast<int>(shape.heads),
                                                    static_cast<int>(shape.kv_heads),
                                                    static_cast<int>(shape.d / 2));
}

Parts decode_parts(const DecodeShape& shape, int64_t longest) {
  // About two blocks for each of an H100's 132 multiprocessors.
  constexpr int64_t blocks = 264, least = 32;
  const int64_t keys = longest * shape.sequences * shape.kv_heads / blocks;
  const int64_t part = std::clamp<int64_t>((keys + 31) / 32 * 32, least, kMostKeys);
  return {part, std::max<int64_t>(1, (longest + part - 1) / part)};
}

int64_t decode_scratch(const DecodeShape& shape, const Parts& parts) {
  return parts.count == 1 ? 0 : shape.sequences * shape.heads * parts.count * (shape.d + 2);
}

template <class T>
void decode_attention(const T* q, const CacheEntry* caches, const DecodeShape& shape, const Parts& parts,
                      float* scratch, T* out, cudaStream_t stream) {
  const int heads = static_cast<int>(shape.heads), kv_heads = static_cast<int>(shape.kv_heads),
            d = static_cast<int>(shape.d);
  const int part_keys = static_cast<int>(parts.keys), count = static_cast<int>(parts.count),
            sequences = static_cast<int>(shape.sequences);
  const int chunks = (heads / kv_heads + kGroup - 1) / kGroup;
  const dim3 grid(count, kv_heads * chunks, sequences);
  const size_t bytes = decode_shared_bytes(part_keys, d);
  const auto start = [&](auto kernel) {
    if (bytes > 48 * 1024)
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    kernel<<<grid, kDecodeWarps * kWarp, bytes, stream>>>(q, caches, heads, kv_heads, d, part_keys, count,
                                                          scratch, out);
  };
  if (d <= 32)
    start(decode_kernel<T, 1>);
  else if (d <= 64)
    start(decode_kernel<T, 2>);
  else if (d <= 128)
    start(decode_kernel<T, 4>);
  else
    start(decode_kernel<T, 8>);
  if (count > 1)
    combine_kernel<<<dim3(heads, sequences), kCombine, 0, stream>>>(scratch, caches, heads, d, part_keys,
                                                                    count, out);
}

#define GLIMPSE_KERNELS(T)                                                                                  \
  template void rotate_and_append(T*, const T*, const T*, const float*, const float*, const CacheEntry*,    \
                                  const DecodeShape&, cudaStream_t);                                        \
  template void decode_attention(const T*, const CacheEntry*, const DecodeShape&, const Parts&, float*, T*, \
                                 cudaStream_t);
GLIMPSE_KERNELS(bf16)
GLIMPSE_KERNELS(float)

}  // namespace glimpse::cuda
