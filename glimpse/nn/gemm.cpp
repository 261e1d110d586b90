#include "glimpse/nn/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/tile-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

constexpr int64_t kDepth = gemm::panel_depth;
constexpr int64_t kMostLanes = 16;

int64_t gemm_block_rows() {
  return tile_rows();
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

HWY_INLINE VU step_bits(const bf16* x, int64_t i, float) {
  return hn::BitCast(U(), load(F(), x + i));
}
HWY_INLINE VU step_bits(const bf16* x, int64_t i, Pair) {
  return load_pairs(x + 2 * i);
}

// packed[block][step][row in block]; rows beyond m are zero.
template <class Step>
void gemm_pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, Step* packed) {
  const int64_t rows = gemm_block_rows(), all = steps_of<Step>(k), lanes = hn::Lanes(F());
  const int64_t vectors = rows % 4 ? 0 : (std::is_same_v<Step, Pair> ? k / 2 : k) / lanes * lanes;
  for (int64_t b = first; b < last; ++b) {
    Step* to = packed + b * rows * all;
    const auto row_of = [&](int64_t r) { return x + (b * rows + r) * k; };
    const int64_t real = std::min(rows, m - b * rows);
    for (int64_t i = 0; i < vectors; i += lanes)
      for (int64_t r = 0; r < rows; r += 4) {
        VU from[4], out[4];
        for (int j = 0; j < 4; ++j)
          from[j] = r + j < real ? step_bits(row_of(r + j), i, Step{0}) : hn::Zero(U());
        transpose_blocks(from, out);
        for (int j = 0; j < 4; ++j) {
          HWY_ALIGN uint32_t columns[kMostLanes];
          hn::Store(out[j], U(), columns);
          for (int64_t q = 0; q < lanes / 4; ++q)
            __builtin_memcpy(to + (i + 4 * q + j) * rows + r, columns + 4 * q, 16);
        }
      }
    for (int64_t i = vectors; i < all; ++i)
      for (int64_t r = 0; r < rows; ++r)
        to[i * rows + r] = r < real ? step_at<Step>(row_of(r), i, k) : Step{0};
  }
}

// Sums [columns][height] from row `top` on as rows of y, with the bias, rounded once.
void write_rows(const float* sums, int64_t height, int64_t columns, int64_t top, int64_t bottom,
                const float* bias, int64_t n, bf16* y) {
  const F f;
  const int64_t lanes = hn::Lanes(f), fours = lanes % 4 ? 0 : columns / 4 * 4;
  // Whole rows are put together first: rows of y may be a page apart and then fight for the same cache lines.
  bf16 whole[kMostLanes][gemm::panel_columns];
  for (int64_t r = top; r < bottom; r += lanes) {  // sums are padded to whole vectors of rows
    const float* const from = sums + r - top;
    for (int64_t c = 0; c < fours; c += 4) {
      VU column[4], out[4];
      for (int j = 0; j < 4; ++j)
        column[j] = hn::BitCast(
            U(), hn::Add(hn::LoadU(f, from + (c + j) * height), hn::Set(f, bias ? bias[c + j] : 0.0f)));
      transpose_blocks(column, out);
      for (int j = 0; j < 4; ++j) {
        HWY_ALIGN bf16 row[kMostLanes];
        store(f, hn::BitCast(f, out[j]), row);
        for (int64_t q = 0; q < lanes / 4; ++q) __builtin_memcpy(&whole[4 * q + j][c], row + 4 * q, 8);
      }
    }
    for (int64_t c = fours; c < columns; ++c)
      for (int64_t i = 0; i < lanes; ++i)
        narrow_one(from[c * height + i] + (bias ? bias[c] : 0.0f), &whole[i][c]);
    for (int64_t i = 0; i < std::min(lanes, bottom - r); ++i) std::copy_n(whole[i], columns, y + (r + i) * n);
  }
}

template <class Step>
void gemm_panel(const Step* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
                const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  const int64_t rows = gemm_block_rows(), height = (last - first) * rows, all = steps_of<Step>(k);
  Step* own_w = reinterpret_cast<Step*>(scratch);        // [columns][kDepth]
  float* sums = scratch + gemm::panel_columns * kDepth;  // [columns][height]
  const int64_t columns = end - begin, step_size = std::is_same_v<Step, Pair> ? 2 : 1;
  for (int64_t d = 0; d < all; d += kDepth) {
    const int64_t depth = std::min(kDepth, all - d);
    for (int64_t c = 0; c < columns; ++c) copy_steps(w + (begin + c) * k, d, depth, k, own_w + c * kDepth);
    int64_t asked = d + kDepth < all ? 0 : columns;  // columns whose next block is on its way
    for (int64_t b = first; b < last; ++b) {
      // The next block of weights is asked for while this one is multiplied: its short rows, far apart, are
      // not foreseen by the hardware.
      for (; asked * (last - first) < columns * (b - first + 1); ++asked) {
        const bf16* const next = w + (begin + asked) * k + (d + kDepth) * step_size;
        for (int64_t i = 0; i < kDepth * step_size; i += 32) __builtin_prefetch(next + i, 0, 2);
      }
      const Step* x = packed + b * rows * all + d * rows;
      float* own = sums + (b - first) * rows;
      const Operand<Step> panel{own_w, kDepth, 1};
      if (d == 0)
        tiles(x, panel, depth, columns, own, height, FromZero());
      else
        tiles(x, panel, depth, columns, own, height, FromSums());
    }
  }
  write_rows(sums, height, columns, first * rows, std::min(last * rows, m), bias ? bias + begin : nullptr, n,
             y + begin);
}

bool gemm_has_pairs() {
  return has_pairs();
}
void pack_floats(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, float* packed) {
  gemm_pack(x, m, k, first, last, packed);
}
void pack_pairs(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, float* packed) {
  gemm_pack(x, m, k, first, last, reinterpret_cast<Pair*>(packed));
}
void panel_floats(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
                  const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  gemm_panel(packed, m, k, first, last, w, bias, begin, end, n, y, scratch);
}
void panel_pairs(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
                 const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  gemm_panel(reinterpret_cast<const Pair*>(packed), m, k, first, last, w, bias, begin, end, n, y, scratch);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(gemm_block_rows);
HWY_EXPORT(gemm_has_pairs);
HWY_EXPORT(pack_floats);
HWY_EXPORT(pack_pairs);
HWY_EXPORT(panel_floats);
HWY_EXPORT(panel_pairs);

namespace gemm {

bool has_pairs() {
  return HWY_DYNAMIC_DISPATCH(gemm_has_pairs)();
}

int64_t block_rows() {
  return HWY_DYNAMIC_DISPATCH(gemm_block_rows)();
}

int64_t packed_size(int64_t m, int64_t k, bool pairs) {
  const int64_t rows = block_rows();
  return (m + rows - 1) / rows * rows * (pairs ? (k + 1) / 2 : k);
}

int64_t scratch_size(int64_t rows) {
  return panel_columns * (panel_depth + rows + block_rows());
}

void pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, bool pairs, float* packed) {
  if (pairs)
    HWY_DYNAMIC_DISPATCH(pack_pairs)(x, m, k, first, last, packed);
  else
    HWY_DYNAMIC_DISPATCH(pack_floats)(x, m, k, first, last, packed);
}

void panel(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
           const float* bias, int64_t begin, int64_t end, int64_t n, bool pairs, bf16* y, float* scratch) {
  if (pairs)
    HWY_DYNAMIC_DISPATCH(panel_pairs)(packed, m, k, first, last, w, bias, begin, end, n, y, scratch);
  else
    HWY_DYNAMIC_DISPATCH(panel_floats)(packed, m, k, first, last, w, bias, begin, end, n, y, scratch);
}

}  // namespace gemm
}  // namespace glimpse
#endif
