#pragma once

#include <cstdint>

/// CPU kernels on raw rows, compiled for every instruction set this compiler knows and chosen at run time.
/// They run on the calling thread; nn/ops.h and nn/linear.h split the work. bf16 values are passed as their
/// 16 bits. All arithmetic is float32.
namespace glimpse::kernels {

using bf16 = uint16_t;

/// Rows that `dots` can take at once.
inline constexpr int64_t max_rows = 8;

/// out = sums + bias, rounded to the nearest, ties to even; bias may be null.
void add_bias(const float* sums, const bf16* bias, int64_t n, bf16* out);
void add_bias(const float* sums, const float* bias, int64_t n, float* out);

/// y[i * ldy + n] = x[i * ldx ...] . w[n, :] for i < m <= max_rows and begin <= n < end; rows of k numbers, w
/// [*, k].
void dots(const float* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t begin, int64_t end,
          float* y, int64_t ldy);
void dots(const float* x, int64_t ldx, int64_t m, int64_t k, const float* w, int64_t begin, int64_t end,
          float* y, int64_t ldy);
/// In pairs of bf16, where gemm::has_pairs() (nn/gemm.h).
void dots(const bf16* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t begin, int64_t end,
          float* y, int64_t ldy);

/// y[i, :] = sum_s p[i * ldp + s] * v[s, :] for i < m <= max_rows, s < n; v [n, d], y [m, d].
void mix(const float* p, int64_t ldp, int64_t m, int64_t n, const bf16* v, int64_t d, float* y);
void mix(const float* p, int64_t ldp, int64_t m, int64_t n, const float* v, int64_t d, float* y);

/// One row: out = x / sqrt(mean(x^2) + eps), rounded to the type, times w. If `delta` is given, x += delta
/// first.
void rms_norm(bf16* x, const bf16* delta, const bf16* w, float eps, int64_t n, bf16* out);
void rms_norm(float* x, const float* delta, const float* w, float eps, int64_t n, float* out);

/// out = silu(gate) * up.
void silu_mul(const bf16* gate, const bf16* up, bf16* out, int64_t n);
void silu_mul(const float* gate, const float* up, float* out, int64_t n);

/// Rotates one head in place: (a, b) = the halves of x [2 * half]; a' = a cos - b sin, b' = b cos + a sin.
void rotate(bf16* x, const float* cos, const float* sin, int64_t half);
void rotate(float* x, const float* cos, const float* sin, int64_t half);

/// In place softmax of one row; returns the logarithm of the sum of exp(x).
float softmax(float* x, int64_t n);

/// The instruction set in use ("AVX3_ZEN4", "AVX2", ...).
const char* target_name();

}  // namespace glimpse::kernels
