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

// Rows of 32-bit numbers as columns, in blocks of 4 x 4: block b of out[j] is element 4 b + j of the four
// rows.
HWY_INLINE void transpose_blocks(const VU (&row)[4], VU (&out)[4]) {
#if HWY_TARGET == HWY_SCALAR
  std::copy(row, row + 4, out);  // has no blocks; not called
#else
  const U u;
  const VU even_low = hn::InterleaveLower(u, row[0], row[2]),
           odd_low = hn::InterleaveLower(u, row[1], row[3]),
           even_high = hn::InterleaveUpper(u, row[0], row[2]),
           odd_high = hn::InterleaveUpper(u, row[1], row[3]);
  out[0] = hn::InterleaveLower(u, even_low, odd_low);
  out[1] = hn::InterleaveUpper(u, even_low, odd_low);
  out[2] = hn::InterleaveLower(u, even_high, odd_high);
  out[3] = hn::InterleaveUpper(u, even_high, odd_high);
#endif
}

template <class T>
HWY_INLINE VU step_bits(const T* x, int64_t i, float) {
  return hn::BitCast(U(), load(F(), x + i));
}
HWY_INLINE VU step_bits(const bf16* x, int64_t i, Pair) {
  return load_pairs(x + 2 * i);
}

constexpr int64_t kMostLanes = 16;

// A tile's rows x [real, k], `stride` numbers apart, as steps [k in steps][rows]; rows beyond `real` are
// zero.
template <class T, class Step>
HWY_INLINE void pack_rows(const T* x, int64_t stride, int64_t real, int64_t k, Step* to) {
  const int64_t rows = tile_rows(), lanes = hn::Lanes(F());
  const int64_t vectors = rows % 4 ? 0 : (std::is_same_v<Step, Pair> ? k / 2 : k) / lanes * lanes;
  for (int64_t i = 0; i < vectors; i += lanes)
    for (int64_t r = 0; r < rows; r += 4) {
      VU from[4], out[4];
      for (int j = 0; j < 4; ++j)
        from[j] = r + j < real ? step_bits(x + (r + j) * stride, i, Step{0}) : hn::Zero(U());
      transpose_blocks(from, out);
      for (int j = 0; j < 4; ++j) {
        HWY_ALIGN uint32_t columns[kMostLanes];
        hn::Store(out[j], U(), columns);
        for (int64_t q = 0; q < lanes / 4; ++q)
          __builtin_memcpy(to + (i + 4 * q + j) * rows + r, columns + 4 * q, 16);
      }
    }
  for (int64_t i = vectors; i < steps_of<Step>(k); ++i)
    for (int64_t r = 0; r < rows; ++r)
      to[i * rows + r] = r < real ? step_at<Step>(x + r * stride, i, k) : Step{0};
}

// The way back: sums [columns][height] of `real` rows as rows of y, `stride` numbers apart, plus the bias if
// there is one, rounded once. Whole vectors of rows can be read.
template <class T>
HWY_INLINE void write_rows(const float* sums, int64_t height, int64_t columns, int64_t real,
                           const float* bias, T* y, int64_t stride) {
  constexpr int64_t kMost = 240;
  const F f;
  const int64_t lanes = hn::Lanes(f);
  // Whole rows are put together first: rows of y may be a page apart and then fight for the same cache lines.
  T whole[kMostLanes][kMost];
  for (int64_t first = 0; first < columns; first += kMost) {
    const int64_t count = std::min(kMost, columns - first), fours = lanes % 4 ? 0 : count / 4 * 4;
    const float* const offsets = bias ? bias + first : nullptr;
    for (int64_t r = 0; r < real; r += lanes) {
      const float* const from = sums + first * height + r;
      for (int64_t c = 0; c < fours; c += 4) {
        VU column[4], out[4];
        for (int j = 0; j < 4; ++j)
          column[j] = hn::BitCast(U(), hn::Add(hn::LoadU(f, from + (c + j) * height),
                                               hn::Set(f, offsets ? offsets[c + j] : 0.0f)));
        transpose_blocks(column, out);
        for (int j = 0; j < 4; ++j) {
          HWY_ALIGN T row[kMostLanes];
          store(f, hn::BitCast(f, out[j]), row);
          for (int64_t q = 0; q < lanes / 4; ++q)
            __builtin_memcpy(&whole[4 * q + j][c], row + 4 * q, 4 * sizeof(T));
        }
      }
      for (int64_t c = fours; c < count; ++c)
        for (int64_t i = 0; i < lanes; ++i)
          narrow_one(from[c * height + i] + (offsets ? offsets[c] : 0.0f), &whole[i][c]);
      for (int64_t i = 0; i < std::min(lanes, real - r); ++i)
        std::copy_n(whole[i], count, y + (r + i) * stride + first);
    }
  }
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
