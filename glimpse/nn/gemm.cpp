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

// packed[block][k][row in block]; rows beyond m are zero.
void gemm_pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, float* packed) {
  const int64_t rows = gemm_block_rows();
  for (int64_t b = first; b < last; ++b) {
    float* to = packed + b * rows * k;
    const int64_t real = std::min(rows, m - b * rows);
    // Eight depths at a time, so that each source line is used while it is in the cache.
    for (int64_t d = 0; d < k; d += 8)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = d; i < std::min(d + 8, k); ++i)
          to[i * rows + r] = r < real ? widen_one(x[(b * rows + r) * k + i]) : 0.0f;
  }
}

void gemm_panel(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
                const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  const int64_t rows = gemm_block_rows(), height = (last - first) * rows;
  float* wide = scratch;                                 // [columns][kDepth]
  float* sums = scratch + gemm::panel_columns * kDepth;  // [columns][height]
  const int64_t columns = end - begin;
  for (int64_t d = 0; d < k; d += kDepth) {
    const int64_t depth = std::min(kDepth, k - d);
    for (int64_t c = 0; c < columns; ++c) widen_row(w + (begin + c) * k + d, depth, wide + c * kDepth);
    for (int64_t b = first; b < last; ++b) {
      const float* x = packed + b * rows * k + d * rows;
      float* own = sums + (b - first) * rows;
      const Operand panel{wide, kDepth, 1};
      if (d == 0)
        tiles(x, panel, depth, columns, own, height, FromZero());
      else
        tiles(x, panel, depth, columns, own, height, FromSums());
    }
  }
  // Back to row-major, with the bias, rounded once. Blocks of rows keep the strided reads in the cache.
  const int64_t top = first * rows, bottom = std::min(last * rows, m);
  for (int64_t r0 = top; r0 < bottom; r0 += 16)
    for (int64_t c = 0; c < columns; ++c) {
      const float offset = bias ? bias[begin + c] : 0.0f;
      for (int64_t r = r0; r < std::min(r0 + 16, bottom); ++r)
        narrow_one(sums[c * height + r - top] + offset, y + r * n + begin + c);
    }
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(gemm_block_rows);
HWY_EXPORT(gemm_pack);
HWY_EXPORT(gemm_panel);

namespace gemm {

int64_t block_rows() {
  return HWY_DYNAMIC_DISPATCH(gemm_block_rows)();
}

int64_t packed_size(int64_t m, int64_t k) {
  const int64_t rows = block_rows();
  return (m + rows - 1) / rows * rows * k;
}

int64_t scratch_size(int64_t rows) {
  return panel_columns * (panel_depth + rows + block_rows());
}

void pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, float* packed) {
  HWY_DYNAMIC_DISPATCH(gemm_pack)(x, m, k, first, last, packed);
}

void panel(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
           const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  HWY_DYNAMIC_DISPATCH(gemm_panel)(packed, m, k, first, last, w, bias, begin, end, n, y, scratch);
}

}  // namespace gemm
}  // namespace glimpse
#endif
