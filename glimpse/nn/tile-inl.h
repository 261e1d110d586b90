// The inner product of the many-row kernels: a tile of rows in vector lanes x columns in registers; included
// once per instruction set.
#if defined(GLIMPSE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_TILE_INL_H_
#undef GLIMPSE_TILE_INL_H_
#else
#define GLIMPSE_TILE_INL_H_
#endif

#include "glimpse/nn/pairs-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// A tile is kVectors x lanes rows by kColumns columns; its sums stay in registers.
constexpr int kVectors = 2;
#if HWY_TARGET <= HWY_AVX3
constexpr int kColumns = 12;  // 24 of 32 registers
#else
constexpr int kColumns = 6;  // 12 of 16 registers
#endif

HWY_INLINE int64_t tile_rows() {
  return kVectors * static_cast<int64_t>(hn::Lanes(F()));
}

// The right operand: step (depth i, column c) is at data[c * column + i * depth].
template <class Step>
struct Operand {
  const Step* data;
  int64_t column, depth;
};

// What a tile's sums start from: nothing, what is there, or that scaled row by row.
struct FromZero {};
struct FromSums {};
struct FromScaled {
  const float* factors;  // [rows]
};

HWY_INLINE V start(FromZero, const float*, int64_t) {
  return hn::Zero(F());
}
HWY_INLINE V start(FromSums, const float* sums, int64_t) {
  return hn::LoadU(F(), sums);
}
HWY_INLINE V start(FromScaled from, const float* sums, int64_t row) {
  return hn::Mul(hn::LoadU(F(), sums), hn::LoadU(F(), from.factors + row));
}

// sums[c * stride + row] = start + sum over i < depth of x[i][row] w(i, c); x [depth][rows].
template <int Columns, class Step, class Start>
HWY_INLINE void tile(const Step* x, Operand<Step> w, int64_t depth, float* sums, int64_t stride, Start from) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  V acc[kVectors][Columns];
  for (int c = 0; c < Columns; ++c)
    for (int v = 0; v < kVectors; ++v) acc[v][c] = start(from, sums + c * stride + v * lanes, v * lanes);
  for (int64_t i = 0; i < depth; ++i) {
    decltype(load_steps(x)) rows[kVectors];
    for (int v = 0; v < kVectors; ++v) rows[v] = load_steps(x + (i * kVectors + v) * lanes);
    for (int c = 0; c < Columns; ++c) {
      const auto each = spread(w.data[c * w.column + i * w.depth]);
      for (int v = 0; v < kVectors; ++v) acc[v][c] = add_product(acc[v][c], rows[v], each);
    }
  }
  for (int c = 0; c < Columns; ++c)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[v][c], f, sums + c * stride + v * lanes);
}

// The same for any number of columns.
template <class Step, class Start>
HWY_INLINE void tiles(const Step* x, Operand<Step> w, int64_t depth, int64_t columns, float* sums,
                      int64_t stride, Start from) {
  int64_t c = 0;
  const auto at = [&](int64_t column) {
    return Operand<Step>{w.data + column * w.column, w.column, w.depth};
  };
  for (; c + kColumns <= columns; c += kColumns)
    tile<kColumns>(x, at(c), depth, sums + c * stride, stride, from);
  for (; c + 2 <= columns; c += 2) tile<2>(x, at(c), depth, sums + c * stride, stride, from);
  for (; c < columns; ++c) tile<1>(x, at(c), depth, sums + c * stride, stride, from);
}

// One row of bf16 or float32 as float32.
template <class T>
HWY_INLINE void widen_row(const T* from, int64_t n, float* to) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(load(f, from + i), f, to + i);
  for (; i < n; ++i) to[i] = widen_one(from[i]);
}

// The steps [first, first + n) of a row x [k].
template <class T>
HWY_INLINE void copy_steps(const T* x, int64_t first, int64_t n, int64_t, float* to) {
  widen_row(x + first, n, to);
}
HWY_INLINE void copy_steps(const bf16* x, int64_t first, int64_t n, int64_t k, Pair* to) {
  const int64_t whole = std::min(n, k / 2 - first);
  __builtin_memcpy(to, x + 2 * first, whole * sizeof(Pair));
  if (whole < n) to[whole] = x[k - 1];
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
