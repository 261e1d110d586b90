#include <algorithm>

#include "glimpse/nn/cuda_common.cuh"

namespace glimpse::cuda {

namespace {

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Of a block whose threads take a piece each, several if there are more than `most`.
int threads_for(int64_t pieces, int64_t most) {
  return static_cast<int>(std::clamp<int64_t>((pieces + kWarp - 1) / kWarp * kWarp, kWarp, most));
}

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

// From `first` on, kStep neighbours a thread.
template <class T, int kStep>
__global__ void silu_mul_kernel(const T* gate, const T* up, T* out, int64_t first, int64_t n) {
  const int64_t i = first + (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) * kStep;
  if (i >= n) return;
  const Vector<T, kStep> g = load<T, kStep>(gate + i), u = load<T, kStep>(up + i);
  Vector<T, kStep> y;
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    const float a = widen(g.at[j]);
    y.at[j] = narrow<T>(a / (1.0f + __expf(-a)) * widen(u.at[j]));
  }
  store(out + i, y);
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
    for (int j = 0; j < kStep; ++j) rotate_pair(a.at[j], b.at[j], cos[at + j], sin[at + j]);
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

template <class T, int M = 1>
void start_few_rows(const T* x, int64_t m, int64_t k, const Factors<T>& factors, int64_t columns,
                    cudaStream_t stream) {
  if constexpr (M < max_few_rows)
    if (m > M) return start_few_rows<T, M + 1>(x, m, k, factors, columns, stream);
  constexpr int threads = 256, warps = threads / kWarp;
  // Few columns are shared among more warps, so that every multiprocessor has enough loads in flight.
  if (columns < 8192 && M <= 2)
    few_rows_kernel<T, M, 1><<<blocks_for(columns, warps), threads, 0, stream>>>(x, k, factors, columns);
  else if (columns < 8192 || M <= 2)
    few_rows_kernel<T, M, 2><<<blocks_for(columns, 2 * warps), threads, 0, stream>>>(x, k, factors, columns);
  else
    few_rows_kernel<T, M, 4><<<blocks_for(columns, 4 * warps), threads, 0, stream>>>(x, k, factors, columns);
}

}  // namespace

template <class T>
void rms_norm(T* x, const T* delta, const T* w, float eps, int64_t rows, int64_t n, T* out,
              cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int size = Vector<T>::size;
  const bool vectors = n % size == 0 && aligned(x) && aligned(delta) && aligned(w) && aligned(out);
  const int64_t pieces = vectors ? n / size : n;
  const int threads = threads_for(pieces, rows > 264 ? 256 : 1024);
  if (vectors)
    rms_norm_kernel<T, size><<<static_cast<int>(rows), threads, 0, stream>>>(x, delta, w, eps, n, out);
  else
    rms_norm_kernel<T, 1><<<static_cast<int>(rows), threads, 0, stream>>>(x, delta, w, eps, n, out);
}

template <class T>
void silu_mul(const T* gate, const T* up, T* out, int64_t n, cudaStream_t stream) {
  constexpr int size = Vector<T>::size, threads = 256;
  const int64_t rest = n % size, whole = n - rest;
  if (whole > 0)
    silu_mul_kernel<T, size>
        <<<blocks_for(whole / size, threads), threads, 0, stream>>>(gate, up, out, 0, whole);
  if (rest > 0) silu_mul_kernel<T, 1><<<1, kWarp, 0, stream>>>(gate, up, out, whole, n);
}

template <class T>
void rotate(T* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t half,
            cudaStream_t stream) {
  if (tokens == 0) return;
  constexpr int size = Vector<T>::size;
  const bool vectors = half % size == 0 && aligned(x);
  const int64_t pieces = vectors ? heads * half / size : heads * half;
  const int threads = threads_for(pieces, 256);
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
  if (m >= 1 && m <= max_few_rows) start_few_rows(x, m, k, all, columns, stream);
}

#define GLIMPSE_KERNELS(T)                                                                                  \
  template void rms_norm(T*, const T*, const T*, float, int64_t, int64_t, T*, cudaStream_t);                \
  template void silu_mul(const T*, const T*, T*, int64_t, cudaStream_t);                                    \
  template void rotate(T*, const float*, const float*, int64_t, int64_t, int64_t, cudaStream_t);            \
  template void gather_rows(const T*, const T*, int64_t, const int64_t*, int64_t, int64_t, int64_t, T*, T*, \
                            int64_t, cudaStream_t);                                                         \
  template void few_row_products(const T*, int64_t, int64_t, const Factor<T>*, int64_t, cudaStream_t);
GLIMPSE_KERNELS(bf16)
GLIMPSE_KERNELS(float)

}  // namespace glimpse::cuda
