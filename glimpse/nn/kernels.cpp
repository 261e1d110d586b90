#include "glimpse/nn/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/kernels.cpp"
#include <hwy/foreach_target.h>  // before any other Highway header
#include <hwy/highway.h>

#include "glimpse/nn/pairs-inl.h"
#include "glimpse/nn/rows-inl.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

template <class T>
void add_bias_row(const float* sums, const T* bias, int64_t n, T* out) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    store(f, bias ? hn::Add(hn::LoadU(f, sums + i), load(f, bias + i)) : hn::LoadU(f, sums + i), out + i);
  for (; i < n; ++i) narrow_one(bias ? sums[i] + widen_one(bias[i]) : sums[i], out + i);
}

// Vectors of numbers to multiply: x decides whether single float32 or pairs of bf16.
HWY_INLINE int64_t numbers_per_vector(const float*) {
  return hn::Lanes(F());
}
HWY_INLINE int64_t numbers_per_vector(const bf16*) {
  return 2 * hn::Lanes(F());
}
template <class T>
HWY_INLINE V load_factor(const float*, const T* from) {
  return load(F(), from);
}
HWY_INLINE VU load_factor(const bf16*, const bf16* from) {
  return load_pairs(from);
}

// M rows of x against R rows of w at once, from number `from` to `to` of k: each w element is loaded once,
// each x element R times. Sums wait in `carry` for the numbers that follow. While it works it asks for
// `next`, the block of w after this one, unless that is null: the hardware alone does not look beyond a page,
// which a row often is.
template <int M, int R, class X, class W>
void dot_block(const X* x, int64_t ldx, int64_t k, int64_t from, int64_t to, const W* w, const W* next,
               float* carry, float* y, int64_t ldy) {
  const F f;
  constexpr int64_t line = 64 / sizeof(W);
  const int64_t lanes = numbers_per_vector(x), width = hn::Lanes(f);
  V sum[M][R];
  for (int i = 0; i < M; ++i)
    for (int r = 0; r < R; ++r)
      sum[i][r] = from == 0 ? hn::Zero(f) : hn::LoadU(f, carry + (r * M + i) * width);
  const auto step = [&](int64_t j) {
    decltype(load_factor(x, w)) wv[R];
    for (int r = 0; r < R; ++r) wv[r] = load_factor(x, w + r * k + j);
    for (int i = 0; i < M; ++i) {
      const auto xv = load_factor(x, x + i * ldx + j);
      for (int r = 0; r < R; ++r) sum[i][r] = add_product(sum[i][r], xv, wv[r]);
    }
  };
  int64_t j = from;
  for (; j + line <= to; j += line) {
    if (next)
      for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * k + j - from, 0, 2);
    for (int64_t t = 0; t < line; t += lanes) step(j + t);
  }
  for (; j + lanes <= to; j += lanes) step(j);
  for (int i = 0; i < M; ++i)
    for (int r = 0; r < R; ++r) {
      if (to < k) {
        hn::StoreU(sum[i][r], f, carry + (r * M + i) * width);
        continue;
      }
      float total = hn::GetLane(hn::SumOfLanes(f, sum[i][r]));
      for (int64_t t = j; t < k; ++t) total += widen_one(x[i * ldx + t]) * widen_one(w[r * k + t]);
      y[i * ldy + r] = total;
    }
}

// Sums, weights and one x fit the registers. More rows than kRows go over the same weights, still in the
// cache, again.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 8;
constexpr int columns_for(int m) {
  return m <= 2 ? 8 : m <= 4 ? 6 : 3;
}
#else
constexpr int kRows = 4;
constexpr int columns_for(int m) {
  return m == 1 ? 8 : m <= 3 ? 4 : 3;
}
#endif

// Numbers of each of `rows` rows that weights pass by at a time: so many that they stay in the first-level
// cache. A multiple of what fills a cache line.
template <class X>
int64_t slice_of(int64_t rows, int64_t k) {
  constexpr int64_t most = (20 << 10) / sizeof(X), line = 64;
  const int64_t slices = rows == 1 ? 1 : (rows * k + most - 1) / most;
  return slices <= 1 ? std::max(k, line) : (k / slices + line) / line * line;
}

template <class X, class W>
void dots_any(const X* x, int64_t ldx, int64_t m, int64_t k, const W* w, int64_t begin, int64_t end, float* y,
              int64_t ldy) {
  const int64_t passes = (m + kRows - 1) / kRows, rows = (m + passes - 1) / passes;
  const int64_t step = passes == 1 ? end - begin : 12;  // a multiple of columns_for(3) and (4)
  const int64_t width = rows * hn::Lanes(F()), slice = slice_of<X>(rows, k);
  thread_local std::vector<float> carry;
  carry.resize(slice < k ? width * step : 0);
  for (int64_t first = begin; first < end; first += step)
    for (int64_t row = 0; row < m; row += rows)
      with_rows(std::min(rows, m - row), [&](auto count) {
        constexpr int columns = columns_for(count);
        const int64_t last = std::min(first + step, end);
        const X* own = x + row * ldx;
        for (int64_t from = 0; from < k || from == 0; from += slice) {
          const int64_t to = std::min(from + slice, k);
          const auto block = [&](int64_t n, auto wide) {
            const int64_t after = n + wide;
            // After the last block comes the next slice of the first.
            const W* const next = row > 0        ? nullptr
                                  : after < last ? w + after * k + from
                                  : to < k       ? w + first * k + to
                                                 : w + last * k;
            dot_block<count, wide>(own, ldx, k, from, to, w + n * k, next, carry.data() + (n - first) * width,
                                   y + row * ldy + n, ldy);
          };
          int64_t n = first;
          for (; n + columns <= last; n += columns) block(n, std::integral_constant<int, columns>());
          for (; n < last; ++n) block(n, std::integral_constant<int, 1>());
        }
      });
}

template <int M, class W>
void mix_m(const float* p, int64_t ldp, int64_t n, const W* v, int64_t d, float* y) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  int64_t c = 0;
  for (; c + lanes <= d; c += lanes) {
    V sum[M];
    for (int i = 0; i < M; ++i) sum[i] = hn::Zero(f);
    for (int64_t s = 0; s < n; ++s) {
      const V vv = load(f, v + s * d + c);
      for (int i = 0; i < M; ++i) sum[i] = hn::MulAdd(hn::Set(f, p[i * ldp + s]), vv, sum[i]);
    }
    for (int i = 0; i < M; ++i) hn::StoreU(sum[i], f, y + i * d + c);
  }
  for (; c < d; ++c)
    for (int i = 0; i < M; ++i) {
      float total = 0;
      for (int64_t s = 0; s < n; ++s) total += p[i * ldp + s] * widen_one(v[s * d + c]);
      y[i * d + c] = total;
    }
}

template <class W>
void mix_any(const float* p, int64_t ldp, int64_t m, int64_t n, const W* v, int64_t d, float* y) {
  with_rows(m, [&](auto count) { mix_m<count>(p, ldp, n, v, d, y); });
}

template <class T>
void rms_norm_row(T* x, const T* delta, const T* w, float eps, int64_t n, T* out) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  V square = hn::Zero(f);
  float tail = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    if (delta) store(f, hn::Add(load(f, x + i), load(f, delta + i)), x + i);
    const V v = load(f, x + i);
    square = hn::MulAdd(v, v, square);
  }
  for (int64_t t = i; t < n; ++t) {
    if (delta) narrow_one(widen_one(x[t]) + widen_one(delta[t]), x + t);
    tail += widen_one(x[t]) * widen_one(x[t]);
  }
  const float mean = (hn::GetLane(hn::SumOfLanes(f, square)) + tail) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + eps);
  const V scales = hn::Set(f, scale);
  // The reference rounds to the storage type between the two factors.
  for (i = 0; i + lanes <= n; i += lanes) {
    store(f, hn::Mul(load(f, x + i), scales), out + i);
    store(f, hn::Mul(load(f, out + i), load(f, w + i)), out + i);
  }
  for (; i < n; ++i) {
    narrow_one(widen_one(x[i]) * scale, out + i);
    narrow_one(widen_one(out[i]) * widen_one(w[i]), out + i);
  }
}

template <class T>
void silu_mul_row(const T* gate, const T* up, T* out, int64_t n) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  const V one = hn::Set(f, 1.0f);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const V g = load(f, gate + i);
    // Exp is defined up to 104, where it is infinite already.
    const V s = hn::Div(g, hn::Add(one, exp_of(hn::Min(hn::Neg(g), hn::Set(f, 104.0f)))));
    store(f, hn::Mul(s, load(f, up + i)), out + i);
  }
  for (; i < n; ++i) {
    const float g = widen_one(gate[i]);
    narrow_one(g / (1.0f + std::exp(-g)) * widen_one(up[i]), out + i);
  }
}

template <class T>
void rotate_row(T* x, const float* cos, const float* sin, int64_t half) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const V a = load(f, x + i), b = load(f, x + half + i);
    const V c = hn::LoadU(f, cos + i), s = hn::LoadU(f, sin + i);
    store(f, hn::NegMulAdd(b, s, hn::Mul(a, c)), x + i);
    store(f, hn::MulAdd(a, s, hn::Mul(b, c)), x + half + i);
  }
  for (; i < half; ++i) {
    const float a = widen_one(x[i]), b = widen_one(x[half + i]);
    narrow_one(a * cos[i] - b * sin[i], x + i);
    narrow_one(b * cos[i] + a * sin[i], x + half + i);
  }
}

float softmax_row(float* x, int64_t n) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  const float top = n > 0 ? *std::max_element(x, x + n) : 0.0f;
  V sums = hn::Zero(f);
  float sum = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const V e = exp_of(hn::Sub(hn::LoadU(f, x + i), hn::Set(f, top)));
    hn::StoreU(e, f, x + i);
    sums = hn::Add(sums, e);
  }
  for (; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
  sum += hn::GetLane(hn::SumOfLanes(f, sums));
  for (i = 0; i < n; ++i) x[i] /= sum;
  return top + std::log(sum);
}

void add_bias_bf16(const float* sums, const bf16* bias, int64_t n, bf16* out) {
  add_bias_row(sums, bias, n, out);
}
void add_bias_f32(const float* sums, const float* bias, int64_t n, float* out) {
  add_bias_row(sums, bias, n, out);
}
void dots_bf16(const float* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t b, int64_t e,
               float* y, int64_t ldy) {
  dots_any(x, ldx, m, k, w, b, e, y, ldy);
}
void dots_f32(const float* x, int64_t ldx, int64_t m, int64_t k, const float* w, int64_t b, int64_t e,
              float* y, int64_t ldy) {
  dots_any(x, ldx, m, k, w, b, e, y, ldy);
}
void dots_pairs(const bf16* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t b, int64_t e,
                float* y, int64_t ldy) {
  dots_any(x, ldx, m, k, w, b, e, y, ldy);
}
void mix_bf16(const float* p, int64_t ldp, int64_t m, int64_t n, const bf16* v, int64_t d, float* y) {
  mix_any(p, ldp, m, n, v, d, y);
}
void mix_f32(const float* p, int64_t ldp, int64_t m, int64_t n, const float* v, int64_t d, float* y) {
  mix_any(p, ldp, m, n, v, d, y);
}
void rms_norm_bf16(bf16* x, const bf16* delta, const bf16* w, float eps, int64_t n, bf16* out) {
  rms_norm_row(x, delta, w, eps, n, out);
}
void rms_norm_f32(float* x, const float* delta, const float* w, float eps, int64_t n, float* out) {
  rms_norm_row(x, delta, w, eps, n, out);
}
void silu_mul_bf16(const bf16* gate, const bf16* up, bf16* out, int64_t n) {
  silu_mul_row(gate, up, out, n);
}
void silu_mul_f32(const float* gate, const float* up, float* out, int64_t n) {
  silu_mul_row(gate, up, out, n);
}
void rotate_bf16(bf16* x, const float* cos, const float* sin, int64_t half) {
  rotate_row(x, cos, sin, half);
}
void rotate_f32(float* x, const float* cos, const float* sin, int64_t half) {
  rotate_row(x, cos, sin, half);
}
const char* name() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(add_bias_bf16);
HWY_EXPORT(add_bias_f32);
HWY_EXPORT(dots_bf16);
HWY_EXPORT(dots_f32);
HWY_EXPORT(dots_pairs);
HWY_EXPORT(mix_bf16);
HWY_EXPORT(mix_f32);
HWY_EXPORT(rms_norm_bf16);
HWY_EXPORT(rms_norm_f32);
HWY_EXPORT(silu_mul_bf16);
HWY_EXPORT(silu_mul_f32);
HWY_EXPORT(rotate_bf16);
HWY_EXPORT(rotate_f32);
HWY_EXPORT(softmax_row);
HWY_EXPORT(name);

namespace kernels {

void add_bias(const float* sums, const bf16* bias, int64_t n, bf16* out) {
  HWY_DYNAMIC_DISPATCH(add_bias_bf16)(sums, bias, n, out);
}
void add_bias(const float* sums, const float* bias, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(add_bias_f32)(sums, bias, n, out);
}
void dots(const float* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t b, int64_t e, float* y,
          int64_t ldy) {
  HWY_DYNAMIC_DISPATCH(dots_bf16)(x, ldx, m, k, w, b, e, y, ldy);
}
void dots(const float* x, int64_t ldx, int64_t m, int64_t k, const float* w, int64_t b, int64_t e, float* y,
          int64_t ldy) {
  HWY_DYNAMIC_DISPATCH(dots_f32)(x, ldx, m, k, w, b, e, y, ldy);
}
void dots(const bf16* x, int64_t ldx, int64_t m, int64_t k, const bf16* w, int64_t b, int64_t e, float* y,
          int64_t ldy) {
  HWY_DYNAMIC_DISPATCH(dots_pairs)(x, ldx, m, k, w, b, e, y, ldy);
}
void mix(const float* p, int64_t ldp, int64_t m, int64_t n, const bf16* v, int64_t d, float* y) {
  HWY_DYNAMIC_DISPATCH(mix_bf16)(p, ldp, m, n, v, d, y);
}
void mix(const float* p, int64_t ldp, int64_t m, int64_t n, const float* v, int64_t d, float* y) {
  HWY_DYNAMIC_DISPATCH(mix_f32)(p, ldp, m, n, v, d, y);
}
void rms_norm(bf16* x, const bf16* delta, const bf16* w, float eps, int64_t n, bf16* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_bf16)(x, delta, w, eps, n, out);
}
void rms_norm(float* x, const float* delta, const float* w, float eps, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_f32)(x, delta, w, eps, n, out);
}
void silu_mul(const bf16* gate, const bf16* up, bf16* out, int64_t n) {
  HWY_DYNAMIC_DISPATCH(silu_mul_bf16)(gate, up, out, n);
}
void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
  HWY_DYNAMIC_DISPATCH(silu_mul_f32)(gate, up, out, n);
}
void rotate(bf16* x, const float* cos, const float* sin, int64_t half) {
  HWY_DYNAMIC_DISPATCH(rotate_bf16)(x, cos, sin, half);
}
void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  HWY_DYNAMIC_DISPATCH(rotate_f32)(x, cos, sin, half);
}
float softmax(float* x, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(softmax_row)(x, n);
}
const char* target_name() {
  return HWY_DYNAMIC_DISPATCH(name)();
}

}  // namespace kernels
}  // namespace glimpse
#endif
