// Steps of dot products: single float32 numbers, or pairs of bf16; included once per instruction set.
#if defined(GLIMPSE_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_PAIRS_INL_H_
#undef GLIMPSE_PAIRS_INL_H_
#else
#define GLIMPSE_PAIRS_INL_H_
#endif

#include "glimpse/nn/bf16-inl.h"

#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// One step of a dot product multiplies a float32 or a pair of bf16, the first in the lower half.
using Pair = uint32_t;

HWY_INLINE V load_steps(const float* from) {
  return hn::LoadU(F(), from);
}
HWY_INLINE V spread(float step) {
  return hn::Set(F(), step);
}
HWY_INLINE V add_product(V sum, V a, V b) {
  return hn::MulAdd(a, b, sum);
}

using U = hn::RebindToUnsigned<F>;
using VU = hn::Vec<U>;
HWY_INLINE VU load_steps(const Pair* from) {
  return hn::LoadU(U(), from);
}
HWY_INLINE VU load_pairs(const bf16* from) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return hn::Set(U(), pair);
#else
  return hn::BitCast(U(), hn::LoadU(hn::Repartition<uint16_t, F>(), from));
#endif
}
HWY_INLINE VU spread(Pair step) {
  return hn::Set(U(), step);
}
// For has_pairs() only; without AVX-512 what it computes, for tests.
HWY_INLINE V add_product(V sum, VU a, VU b) {
#if HWY_TARGET <= HWY_AVX3
  // Highway's target string lacks avx512bf16, so GCC would refuse the intrinsic.
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#else
  const F f;
  const VU high = hn::Set(U(), 0xFFFF0000);
  const auto first = [&](VU v) { return hn::BitCast(f, hn::ShiftLeft<16>(v)); };
  const auto second = [&](VU v) { return hn::BitCast(f, hn::And(v, high)); };
  return hn::MulAdd(second(a), second(b), hn::MulAdd(first(a), first(b), sum));
#endif
}

HWY_INLINE bool has_pairs() {
  return HWY_TARGET <= HWY_AVX3 && __builtin_cpu_supports("avx512bf16");
}

// Steps of a row x [k]; an odd one is filled with a zero.
template <class Step>
HWY_INLINE int64_t steps_of(int64_t k) {
  return std::is_same_v<Step, Pair> ? (k + 1) / 2 : k;
}
template <class Step, class T>
HWY_INLINE Step step_at(const T* x, int64_t i, int64_t k) {
  if constexpr (std::is_same_v<Step, Pair>)
    return x[2 * i] | (2 * i + 1 < k ? Pair{x[2 * i + 1]} << 16 : 0);
  else
    return widen_one(x[i]);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
