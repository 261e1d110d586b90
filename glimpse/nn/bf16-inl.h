// Vectors of float32: conversions from and to bf16 (as its 16 bits), exponentials; included once per
// instruction set.
#if defined(GLIMPSE_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_BF16_INL_H_
#undef GLIMPSE_BF16_INL_H_
#else
#define GLIMPSE_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using bf16 = uint16_t;
using F = hn::ScalableTag<float>;
using V = hn::Vec<F>;
using H = hn::Rebind<uint16_t, F>;  // as many 16-bit lanes as F has float lanes

HWY_INLINE V load(F f, const float* from) {
  return hn::LoadU(f, from);
}

HWY_INLINE V load(F f, const bf16* from) {
  const hn::RebindToUnsigned<F> u;
  return hn::BitCast(f, hn::ShiftLeft<16>(hn::PromoteTo(u, hn::LoadU(H(), from))));
}

HWY_INLINE void store(F f, V v, float* to) {
  hn::StoreU(v, f, to);
}

// The nearest bf16, ties to even as in PyTorch. Infinities stay; a NaN must not round up to infinity.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<F>> rounded_bits(V v) {
  const hn::RebindToUnsigned<F> u;
  const auto bits = hn::BitCast(u, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(u, 0x7FFF), odd)));
  return hn::IfThenElse(hn::RebindMask(u, hn::IsNaN(v)), hn::Set(u, 0x7FC0), rounded);
}

HWY_INLINE void store(F, V v, bf16* to) {
  hn::StoreU(hn::TruncateTo(H(), rounded_bits(v)), H(), to);
}

// Highway's own gives 0 for NaN.
HWY_INLINE V exp_of(V x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(F(), x));
}

HWY_INLINE float widen_one(bf16 x) {
  const uint32_t bits = uint32_t{x} << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}
HWY_INLINE float widen_one(float x) {
  return x;
}

HWY_INLINE void narrow_one(float x, float* to) {
  *to = x;
}
HWY_INLINE void narrow_one(float x, bf16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  *to = std::isnan(x) ? 0x7FC0 : static_cast<bf16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
