#include "glimpse/nn/cuda_kernels.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

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

int blocks_for(int64_t work, int64_t per_block) {
  return static_cast<int>((work + per_block - 1) / per_block);
}

// ---- norms and elementwise

// A block per row. Every thread reads again what it wrote itself.
template <class T, int kStep>
__global__ void rms_norm_kernel(T* x, const T* delta, const T* w, float eps, int64_t n, T* out) {
  x += blockIdx.x * n;
  out += blockIdx.x * n;
  if (delta) delta += blockIdx.x * n;
  float squares = 0;
  for (int64_t i = threadIdx.x * kStep; i < n; i += blockDim.x * kStep) {
    Vector<T, kStep> own = load<T, kStep>(x + i);
    if (delta) {
      const Vector<T, kStep> more = load<T, kStep>(delta + i);
#pragma unroll
      for (int j = 0; j < kStep; ++j) own.at[j] = narrow<T>(widen(own.at[j]) + widen(more.at[j]));
      store(x + i, own);
    }
#pragma unroll
    for (int j = 0; j < kStep; ++j) squares += widen(own.at[j]) * widen(own.at[j]);
  }
  __shared__ float sums[kWarp];
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = squares;
  __syncthreads();
  const float total = warp_sum(threadIdx.x % kWarp < blockDim.x / kWarp ? sums[threadIdx.x % kWarp] : 0.0f);
  const float scale = rsqrtf(total / static_cast<float>(n) + eps);
  for (int64_t i = threadIdx.x * kStep; i < n; i += blockDim.x * kStep) {
    const Vector<T, kStep> own = load<T, kStep>(x + i), weight = load<T, kStep>(w + i);
    Vector<T, kStep> y;
#pragma unroll
    for (int j = 0; j < kStep; ++j)
      y.at[j] = narrow<T>(widen(narrow<T>(widen(own.at[j]) * scale)) * widen(weight.at[j]));
    store(out + i, y);
  }
}

template <class T>
__global__ void silu_mul_kernel(const T* gate, const T* up, T* out, int64_t vectors) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= vectors) return;
  constexpr int size = Vector<T>::size;
  const Vector<T> g = load(gate + i * size), u = load(up + i * size);
  Vector<T> y;
#pragma unroll
  for (int j = 0; j < size; ++j) {
    const float a = widen(g.at[j]);
    y.at[j] = narrow<T>(a / (1.0f + __expf(-a)) * widen(u.at[j]));
  }
  store(out + i * size, y);
}

template <class T>
__global__ void silu_mul_rest(const T* gate, const T* up, T* out, int64_t first, int64_t n) {
  const int64_t i = first + threadIdx.x;
  if (i >= n) return;
  const float a = widen(gate[i]);
  out[i] = narrow<T>(a / (1.0f + __expf(-a)) * widen(up[i]));
}

template <class T>
__device__ void rotate_pair(T* x, int64_t half, float cos, float sin) {
  const float a = widen(x[0]), b = widen(x[half]);
  x[0] = narrow<T>(a * cos - b * sin);
  x[half] = narrow<T>(b * cos + a * sin);
}

// A block per token; a thread turns kStep neighbouring pairs of a head.
template <class T, int kStep>
__global__ void rotate_kernel(T* x, const float* cos, const float* sin, int heads, int half) {
  const int64_t token = blockIdx.x;
  x += token * heads * 2 * half;
  cos += token * half;
  sin += token * half;
  const int per_head = half / kStep;
  for (int i = threadIdx.x; i < heads * per_head; i += blockDim.x) {
    const int at = i % per_head * kStep;
    T* const own = x + i / per_head * 2 * half + at;
    Vector<T, kStep> a = load<T, kStep>(own), b = load<T, kStep>(own + half);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const float wide_a = widen(a.at[j]), wide_b = widen(b.at[j]), c = cos[at + j], s = sin[at + j];
      a.at[j] = narrow<T>(wide_a * c - wide_b * s);
      b.at[j] = narrow<T>(wide_b * c + wide_a * s);
    }
    store(own, a);
    store(own + half, b);
  }
}

// blockIdx: rows, heads, keys or values.
template <class T>
__global__ void gather_kernel(const T* keys, const T* values, int64_t from_stride, const int64_t* index,
                              int64_t count, int d, T* to_keys, T* to_values, int64_t to_stride) {
  const T* const from = (blockIdx.z ? values : keys) + blockIdx.y * from_stride;
  T* const to = (blockIdx.z ? to_values : to_keys) + blockIdx.y * to_stride;
  const int64_t row = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  if (row >= count) return;
  for (int i = threadIdx.x; i < d; i += blockDim.x) to[row * d + i] = from[index[row] * d + i];
}

// ---- products of few rows

template <class T>
struct Factors {
  Factor<T> of[max_factors];
};

// Each warp makes kColumns columns of the result (rows of the weights, which lie one after the other) for M
// rows of x.
template <class T, int M, int kColumns>
__global__ void few_rows_kernel(const T* x, int64_t k, Factors<T> factors, int64_t columns) {
  constexpr int size = Vector<T>::size;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / kWarp, first = warp * kColumns;
  if (first >= columns) return;

  const T* rows[kColumns];
  const T* bias[kColumns];
  T* out[kColumns];
  int64_t width[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    int64_t column = first + c < columns ? first + c : columns - 1;
    int which = 0;
#pragma unroll
    for (int f = 0; f + 1 < max_factors; ++f)
      if (which == f && column >= factors.of[f].n) {
        column -= factors.of[f].n;
        which = f + 1;
      }
    // Without indexing by a variable, which would put the parameters into local memory.
    Factor<T> own = factors.of[0];
    if (which == 1) own = factors.of[1];
    if (which == 2) own = factors.of[2];
    rows[c] = own.weight + column * k;
    bias[c] = own.bias ? own.bias + column : nullptr;
    out[c] = own.out + column;
    width[c] = own.n;
  }

  float sums[M][kColumns] = {};
#pragma unroll 4
  for (int64_t i = lane * size; i < k; i += kWarp * size) {
    Vector<T> w[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) w[c] = stream_in(rows[c] + i);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const Vector<T> a = load(x + m * k + i);
#pragma unroll
      for (int j = 0; j < size; ++j) {
        const float wide = widen(a.at[j]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[m][c] += wide * widen(w[c].at[j]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float sum = warp_sum(sums[m][c]);
      if (lane == 0 && first + c < columns)
        out[c][m * width[c]] = narrow<T>(sum + (bias[c] ? widen(*bias[c]) : 0.0f));
    }
}

template <class T, int M>
void start_few_rows(const T* x, int64_t k, const Factors<T>& factors, int64_t columns, cudaStream_t stream) {
  constexpr int threads = 256, warps = threads / kWarp;
  // Few columns are shared among more warps, so that every multiprocessor has enough loads in flight.
  if (columns < 8192 && M <= 2)
    few_rows_kernel<T, M, 1><<<blocks_for(columns, warps), threads, 0, stream>>>(x, k, factors, columns);
  else if (columns < 8192 || M <= 2)
    few_rows_kernel<T, M, 2><<<blocks_for(columns, 2 * warps), threads, 0, stream>>>(x, k, factors, columns);
  else
    few_rows_kernel<T, M, 4><<<blocks_for(columns, 4 * warps), threads, 0, stream>>>(x, k, factors, columns);
}

// ---- decoding

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
    for (int i = threadIdx.x; i < half; i += blockDim.x) rotate_pair(q + i, half, cos[i], sin[i]);
    return;
  }
  const CacheEntry cache = caches[s];
  const int64_t from = (s * kv_heads + head - heads) * d,
                to = (head - heads) * cache.head_stride + (cache.length - 1) * d;
  T* const keys = static_cast<T*>(cache.keys) + to;
  T* const values = static_cast<T*>(cache.values) + to;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    T pair[2] = {k[from + i], k[from + half + i]};
    rotate_pair(pair, 1, cos[i], sin[i]);
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
void rms_norm(T* x, const T* delta, const T* w, float eps, int64_t rows, int64_t n, T* out,
              cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int size = Vector<T>::size;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool vectors = n % size == 0 && aligned(x) && aligned(delta) && aligned(w) && aligned(out);
  const int64_t pieces = vectors ? n / size : n;
  const int threads = static_cast<int>(
      std::clamp<int64_t>((pieces + kWarp - 1) / kWarp * kWarp, kWarp, rows > 264 ? 256 : 1024));
  if (vectors)
    rms_norm_kernel<T, size><<<static_cast<int>(rows), threads, 0, stream>>>(x, delta, w, eps, n, out);
  else
    rms_norm_kernel<T, 1><<<static_cast<int>(rows), threads, 0, stream>>>(x, delta, w, eps, n, out);
}

template <class T>
void silu_mul(const T* gate, const T* up, T* out, int64_t n, cudaStream_t stream) {
  constexpr int64_t size = Vector<T>::size, threads = 256;
  const int64_t vectors = n / size;
  if (vectors > 0)
    silu_mul_kernel<<<blocks_for(vectors, threads), threads, 0, stream>>>(gate, up, out, vectors);
  if (n % size) silu_mul_rest<<<1, kWarp, 0, stream>>>(gate, up, out, vectors * size, n);
}

template <class T>
void rotate(T* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t half,
            cudaStream_t stream) {
  if (tokens == 0) return;
  constexpr int size = Vector<T>::size;
  const bool vectors = half % size == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const int64_t pieces = vectors ? heads * half / size : heads * half;
  const int threads = static_cast<int>(std::clamp<int64_t>((pieces + kWarp - 1) / kWarp * kWarp, kWarp, 256));
  const int blocks = static_cast<int>(tokens), count = static_cast<int>(heads),
            width = static_cast<int>(half);
  if (vectors)
    rotate_kernel<T, size><<<blocks, threads, 0, stream>>>(x, cos, sin, count, width);
  else
    rotate_kernel<T, 1><<<blocks, threads, 0, stream>>>(x, cos, sin, count, width);
}

template <class T>
void gather_rows(const T* keys, const T* values, int64_t from_stride, const int64_t* index, int64_t count,
                 int64_t heads, int64_t d, T* to_keys, T* to_values, int64_t to_stride, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 threads(kWarp, 8), grid(blocks_for(count, 8), static_cast<int>(heads), 2);
  gather_kernel<<<grid, threads, 0, stream>>>(keys, values, from_stride, index, count, static_cast<int>(d),
                                              to_keys, to_values, to_stride);
}

template <class T>
void few_row_products(const T* x, int64_t m, int64_t k, const Factor<T>* factors, int64_t count,
                      cudaStream_t stream) {
  Factors<T> all = {};
  int64_t columns = 0;
  for (int64_t f = 0; f < max_factors; ++f) {
    if (f < count) all.of[f] = factors[f];
    columns += all.of[f].n;
  }
  switch (m) {
    case 1:
      return start_few_rows<T, 1>(x, k, all, columns, stream);
    case 2:
      return start_few_rows<T, 2>(x, k, all, columns, stream);
    case 3:
      return start_few_rows<T, 3>(x, k, all, columns, stream);
    case 4:
      return start_few_rows<T, 4>(x, k, all, columns, stream);
    case 5:
      return start_few_rows<T, 5>(x, k, all, columns, stream);
    case 6:
      return start_few_rows<T, 6>(x, k, all, columns, stream);
    case 7:
      return start_few_rows<T, 7>(x, k, all, columns, stream);
    case 8:
      return start_few_rows<T, 8>(x, k, all, columns, stream);
    default:
      return;
  }
}

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
  template void rms_norm(T*, const T*, const T*, float, int64_t, int64_t, T*, cudaStream_t);                \
  template void silu_mul(const T*, const T*, T*, int64_t, cudaStream_t);                                    \
  template void rotate(T*, const float*, const float*, int64_t, int64_t, int64_t, cudaStream_t);            \
  template void gather_rows(const T*, const T*, int64_t, const int64_t*, int64_t, int64_t, int64_t, T*, T*, \
                            int64_t, cudaStream_t);                                                         \
  template void few_row_products(const T*, int64_t, int64_t, const Factor<T>*, int64_t, cudaStream_t);      \
  template void rotate_and_append(T*, const T*, const T*, const float*, const float*, const CacheEntry*,    \
                                  const DecodeShape&, cudaStream_t);                                        \
  template void decode_attention(const T*, const CacheEntry*, const DecodeShape&, const Parts&, float*, T*, \
                                 cudaStream_t);
GLIMPSE_KERNELS(bf16)
GLIMPSE_KERNELS(float)

}  // namespace glimpse::cuda
