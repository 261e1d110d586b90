// Dot products of four bytes per 32-bit lane; included once per instruction set.
#if defined(GLIMPSE_QUADS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_QUADS_INL_H_
#undef GLIMPSE_QUADS_INL_H_
#else
#define GLIMPSE_QUADS_INL_H_
#endif

#include "glimpse/nn/bf16-inl.h"
#include "glimpse/nn/low_bit_kernels.h"

#undef GLIMPSE_PAIRS

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

constexpr int64_t kColumns = low_bit::block_columns;
constexpr int64_t kQuadBytes = 4 * kColumns;

// 32-bit lanes, each a column of a block; a block takes kParts vectors.
using L = hn::CappedTag<int32_t, kColumns>;
using VL = hn::Vec<L>;
using LF = hn::RebindToFloat<L>;
using VF = hn::Vec<LF>;
#if HWY_TARGET == HWY_SCALAR
constexpr int kParts = 16;
#else
constexpr int kParts = 64 / HWY_MAX_BYTES;
#endif
constexpr int64_t kLanes = kColumns / kParts;

// Instruction sets without 8-bit dot products, but with those of pairs of 16 bits (madd), take the even and
// the odd bytes of a quad apart: pairs of 16-bit products cannot overflow 32 bits.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
#define GLIMPSE_PAIRS 1
#else
#define GLIMPSE_PAIRS 0
#endif

#if GLIMPSE_PAIRS
struct Pairs {
  VL even, odd;  // two 16-bit numbers per lane
};
HWY_INLINE Pairs unsigned_pairs(VL u) {
  const hn::Repartition<uint16_t, L> h;
  const auto bytes = hn::BitCast(h, u);
  return {hn::BitCast(L(), hn::And(bytes, hn::Set(h, 0xFF))), hn::BitCast(L(), hn::ShiftRight<8>(bytes))};
}
HWY_INLINE Pairs signed_pairs(VL s) {
  const hn::Repartition<int16_t, L> h;
  const auto bytes = hn::BitCast(h, s);
  return {hn::BitCast(L(), hn::ShiftRight<8>(hn::ShiftLeft<8>(bytes))),
          hn::BitCast(L(), hn::ShiftRight<8>(bytes))};
}
// Adds to each lane the sum of its two products.
HWY_INLINE VL pair_dot(VL acc, VL a, VL b) {
  const hn::Repartition<int16_t, L> h;
  VL rest = hn::Zero(L());  // stays so where one instruction sums neighbours
  acc = hn::ReorderWidenMulAccumulate(L(), hn::BitCast(h, a), hn::BitCast(h, b), acc, rest);
  return hn::Add(acc, rest);
}
#endif

// Adds to each lane the products of its four unsigned bytes u with its four signed bytes s.
HWY_INLINE VL quad_dot(VL acc, VL u, VL s) {
#if HWY_TARGET == HWY_AVX3_DL
  // Highway's target string lacks avx512vnni, so GCC would refuse the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(u.raw), "v"(s.raw));
  return acc;
#elif GLIMPSE_PAIRS
  const Pairs a = unsigned_pairs(u), b = signed_pairs(s);
  return pair_dot(pair_dot(acc, a.even, b.even), a.odd, b.odd);
#else
  const hn::RebindToUnsigned<L> ul;
  const auto bytes = hn::BitCast(ul, u);
  const auto low = hn::Set(ul, 0xFF);
  const auto product = [&](auto unsigned_byte, VL signed_byte) {
    return hn::Mul(hn::BitCast(L(), unsigned_byte), signed_byte);
  };
  acc = hn::Add(acc, product(hn::And(bytes, low), hn::ShiftRight<24>(hn::ShiftLeft<24>(s))));
  acc =
      hn::Add(acc, product(hn::And(hn::ShiftRight<8>(bytes), low), hn::ShiftRight<24>(hn::ShiftLeft<16>(s))));
  acc =
      hn::Add(acc, product(hn::And(hn::ShiftRight<16>(bytes), low), hn::ShiftRight<24>(hn::ShiftLeft<8>(s))));
  return hn::Add(acc, product(hn::ShiftRight<24>(bytes), hn::ShiftRight<24>(s)));
#endif
}

// Sums of a tile's rows x blocks, before the first product.
template <int M, int B, class Vector>
HWY_INLINE void clear(Vector (&sums)[M][B][kParts]) {
  for (int i = 0; i < M; ++i)
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < kParts; ++p) sums[i][b][p] = hn::Zero(hn::DFromV<Vector>());
}

HWY_INLINE VL load_quads(const void* from) {
  return hn::LoadU(L(), static_cast<const int32_t*>(from));
}

HWY_INLINE VL broadcast_quad(const uint8_t* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, 4);
  return hn::Set(L(), bytes);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
