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

int64_t gemm_block_rows() {
  return tile_rows();
}

// packed[block][step][row in block]; rows beyond m are zero.
template <class Step>
void gemm_pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, Step* packed) {
  const int64_t rows = gemm_block_rows();
  for (int64_t b = first; b < last; ++b)
    pack_rows(x + b * rows * k, k, std::min(rows, m - b * rows), k, packed + b * rows * steps_of<Step>(k));
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
  write_rows(sums, height, columns, std::min(height, m - first * rows), bias ? bias + begin : nullptr,
             y + first * rows * n + begin, n);
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
