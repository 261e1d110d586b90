#include "glimpse/nn/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/bf16-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// A tile is kVectors x lanes rows by kColumns columns; its sums stay in registers.
constexpr int kVectors = 2;
#if HWY_TARGET <= HWY_AVX3
constexpr int kColumns = 12;  // 24 of 32 registers
#else
constexpr int kColumns = 4;  // 8 of 16 registers
#endif
constexpr int64_t kDepth = gemm::panel_depth;

int64_t gemm_block_rows() {
  return kVectors * static_cast<int64_t>(hn::Lanes(F()));
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

// sums[c][row] (+)= over `depth` of x block [depth][rows] and w [Columns][depth].
template <int Columns>
HWY_INLINE void tile(const float* x, const float* w, int64_t depth, float* sums, int64_t stride, bool add) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  V acc[kVectors][Columns];
  for (int c = 0; c < Columns; ++c)
    for (int v = 0; v < kVectors; ++v)
      acc[v][c] = add ? hn::LoadU(f, sums + c * stride + v * lanes) : hn::Zero(f);
  for (int64_t d = 0; d < depth; ++d) {
    V rows[kVectors];
    for (int v = 0; v < kVectors; ++v) rows[v] = hn::LoadU(f, x + (d * kVectors + v) * lanes);
    for (int c = 0; c < Columns; ++c) {
      const V each = hn::Set(f, w[c * kDepth + d]);
      for (int v = 0; v < kVectors; ++v) acc[v][c] = hn::MulAdd(rows[v], each, acc[v][c]);
    }
  }
  for (int c = 0; c < Columns; ++c)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[v][c], f, sums + c * stride + v * lanes);
}

void gemm_panel(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
                const float* bias, int64_t begin, int64_t end, int64_t n, bf16* y, float* scratch) {
  const F f;
  const int64_t lanes = hn::Lanes(f), rows = gemm_block_rows(), height = (last - first) * rows;
  float* wide = scratch;                                 // [columns][kDepth]
  float* sums = scratch + gemm::panel_columns * kDepth;  // [columns][height]
  const int64_t columns = end - begin;
  for (int64_t d = 0; d < k; d += kDepth) {
    const int64_t depth = std::min(kDepth, k - d);
    for (int64_t c = 0; c < columns; ++c) {
      const bf16* from = w + (begin + c) * k + d;
      float* to = wide + c * kDepth;
      int64_t i = 0;
      for (; i + lanes <= depth; i += lanes) hn::StoreU(load(f, from + i), f, to + i);
      for (; i < depth; ++i) to[i] = widen_one(from[i]);
    }
    for (int64_t b = first; b < last; ++b) {
      const float* x = packed + b * rows * k + d * rows;
      float* own = sums + (b - first) * rows;
      int64_t c = 0;
      for (; c + kColumns <= columns; c += kColumns)
        tile<kColumns>(x, wide + c * kDepth, depth, own + c * height, height, d > 0);
      for (; c + 4 <= columns; c += 4) tile<4>(x, wide + c * kDepth, depth, own + c * height, height, d > 0);
      for (; c < columns; ++c) tile<1>(x, wide + c * kDepth, depth, own + c * height, height, d > 0);
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
