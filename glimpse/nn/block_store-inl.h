// Sums of a block's columns become results; included once per instruction set.
#if defined(GLIMPSE_BLOCK_STORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_BLOCK_STORE_INL_H_
#undef GLIMPSE_BLOCK_STORE_INL_H_
#else
#define GLIMPSE_BLOCK_STORE_INL_H_
#endif

#include <cmath>

#include "glimpse/nn/quads-inl.h"

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// Sixteen columns of one row of the result; the last block may have fewer.
template <class T>
HWY_INLINE void store_block(const VF (&sums)[kParts], float scale, const float* bias, int64_t column,
                            int64_t n, T* y) {
  const LF f;
  const VF factor = hn::Set(f, scale);
  if (column + kColumns <= n) {
    for (int p = 0; p < kParts; ++p) {
      const VF base = bias ? hn::LoadU(f, bias + column + p * kLanes) : hn::Zero(f);
      store(F(), hn::MulAdd(sums[p], factor, base), y + column + p * kLanes);
    }
    return;
  }
  HWY_ALIGN float all[kColumns];
  for (int p = 0; p < kParts; ++p) hn::StoreU(sums[p], f, all + p * kLanes);
  for (int64_t c = column; c < n; ++c)
    narrow_one(std::fma(all[c - column], scale, bias ? bias[c] : 0.0f), y + c);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
