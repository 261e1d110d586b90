#define HWY_WANT_AVX3_DL 1  // the level that has 8-bit dot products
#include "glimpse/nn/low_bit_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/low_bit_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/block_store-inl.h"
#include "glimpse/nn/quads-inl.h"
#include "glimpse/nn/rows-inl.h"

#include <algorithm>
#include <cmath>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// A tile of rows x blocks keeps its sums in registers.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileRows = 8, kTileBlocks = 3;  // 24 of 32
#else
constexpr int kTileRows = 12 / kParts > 0 ? 12 / kParts : 1, kTileBlocks = 1;  // 12 of 16
#endif

// Rows without a larger number count as zeros, so that 127 divided by it is finite.
constexpr float kLeast = 1e-36f;

template <class T>
float quantise_row(const T* x, int64_t k, uint8_t* u, int64_t padded) {
  const F f;
  const int64_t lanes = hn::Lanes(f);
  V tops = hn::Zero(f), zeros = hn::Zero(f);  // 0 x everything: NaN if anything is not finite
  float top = 0, zero = 0;
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    const V v = load(f, x + i);
    tops = hn::Max(tops, hn::Abs(v));
    zeros = hn::MulAdd(v, hn::Zero(f), zeros);
  }
  for (; i < k; ++i) {
    top = std::max(top, std::abs(widen_one(x[i])));
    zero += 0 * widen_one(x[i]);
  }
  top = std::max(top, hn::GetLane(hn::MaxOfLanes(f, tops)));
  const bool finite = zero + hn::GetLane(hn::SumOfLanes(f, zeros)) == 0;
  const float inverse = finite && top > kLeast ? 127.0f / top : 0.0f;
  const V scale = hn::Set(f, inverse);
  const hn::RebindToSigned<F> s;
  const hn::Rebind<uint8_t, F> b;
  const auto middle = hn::Set(s, 128);
  for (i = 0; i + lanes <= k; i += lanes)
    hn::StoreU(hn::DemoteTo(b, hn::Add(hn::NearestInt(hn::Mul(load(f, x + i), scale)), middle)), b, u + i);
  for (; i < k; ++i) {
    const float value = finite ? std::nearbyint(widen_one(x[i]) * inverse) : 0.0f;
    u[i] = static_cast<uint8_t>(128 + static_cast<int>(value));
  }
  std::fill(u + k, u + padded, uint8_t{128});
  return finite ? top / 127.0f : NAN;
}

// The results of the rows [row, row + M) and blocks [block, block + B) from their integer sums.
template <int M, int B, class Weight, class T>
HWY_INLINE void store_tile(const VL (&acc)[M][B][kParts], const low_bit::Rows& x, const Weight& w,
                           int64_t row, int64_t block, T* y) {
  const L l;
  const LF f;
  for (int b = 0; b < B; ++b) {
    const int64_t column = (block + b) * kColumns;
    for (int i = 0; i < M; ++i) {
      VF sums[kParts];
      for (int p = 0; p < kParts; ++p) {
        const int64_t at = column + p * kLanes;
        const VL sum = hn::Add(acc[i][b][p], hn::LoadU(l, w.correction + at));
        sums[p] = hn::Mul(hn::ConvertTo(f, sum), hn::LoadU(f, w.scale + at));
      }
      store_block(sums, x.scale[row + i], w.bias, column, w.n, y + (row + i) * w.n);
    }
  }
}

// Rows [row, row + M) and blocks [block, block + B): integer sums over all of k.
template <int M, int B, class T>
HWY_INLINE void tile8(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t row, int64_t block, T* y) {
  VL acc[M][B][kParts];
  clear(acc);
  const uint8_t* u = x.u + row * x.stride;
  const int8_t* own = w.w + block * w.quads * kQuadBytes;
  for (int64_t q = 0; q < w.quads; ++q) {
    VL weight[B][kParts];
    for (int b = 0; b < B; ++b) {
      const int8_t* from = own + (b * w.quads + q) * kQuadBytes;
      if (M <= 2) __builtin_prefetch(from + 2048);
      for (int p = 0; p < kParts; ++p) weight[b][p] = load_quads(from + p * 4 * kLanes);
    }
    for (int i = 0; i < M; ++i) {
      const VL value = broadcast_quad(u + i * x.stride + 4 * q);
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < kParts; ++p) acc[i][b][p] = quad_dot(acc[i][b][p], value, weight[b][p]);
    }
  }
  store_tile(acc, x, w, row, block, y);
}

template <int M, int Blocks, class T>
HWY_INLINE void rows8(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t row, int64_t first,
                      int64_t last, T* y) {
  for (; first + Blocks <= last; first += Blocks) tile8<M, Blocks>(x, w, row, first, y);
  for (; first < last; ++first) tile8<M, 1>(x, w, row, first, y);
}

#if GLIMPSE_PAIRS
// Bytes taken apart, so that a tile does nothing but multiply: pairs of one block or of one row, even before
// odd.
template <class Split>
HWY_INLINE void take_apart(const void* from, int64_t bytes, int32_t* to, int64_t step, const Split& split) {
  const L l;
  for (int64_t i = 0; i < bytes / 4; i += step) {
    const Pairs pairs = split(load_quads(static_cast<const uint8_t*>(from) + 4 * i));
    hn::StoreU(pairs.even, l, to + 2 * i);
    hn::StoreU(pairs.odd, l, to + 2 * i + step);
  }
}

// As tile8; the pairs of a row are [quads / lanes][2][lanes], those of a block [quads][parts][2][lanes].
template <int M, int B, class T>
HWY_INLINE void tile_of_pairs(const int32_t* rows, int64_t stride, const int32_t* weights,
                              const low_bit::Rows& x, const low_bit::Weight8& w, int64_t row, int64_t block,
                              T* y) {
  const L l;
  VL acc[M][B][kParts];
  clear(acc);
  for (int64_t q = 0; q < w.quads; ++q)
    for (int odd = 0; odd < 2; ++odd) {
      VL weight[B][kParts];
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < kParts; ++p)
          weight[b][p] = hn::LoadU(l, weights + ((b * w.quads + q) * kParts + p) * 2 * kLanes + odd * kLanes);
      const int32_t* each = rows + q / kLanes * 2 * kLanes + q % kLanes + odd * kLanes;
      for (int i = 0; i < M; ++i) {
        const VL value = hn::Set(l, each[i * stride]);
        for (int b = 0; b < B; ++b)
          for (int p = 0; p < kParts; ++p) acc[i][b][p] = pair_dot(acc[i][b][p], value, weight[b][p]);
      }
    }
  store_tile(acc, x, w, row, block, y);
}

template <class T>
void panel8_any(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t first, int64_t last, T* y) {
  const int64_t block_pairs = w.quads * 2 * kColumns,
                stride = (w.quads + kLanes - 1) / kLanes * 2 * kLanes + 16;
  thread_local std::vector<int32_t> weights, rows;
  weights.resize((last - first) * block_pairs);
  rows.resize(kTileRows * stride);
  for (int64_t b = first; b < last; ++b)
    take_apart(w.w + b * w.quads * kQuadBytes, w.quads * kQuadBytes,
               weights.data() + (b - first) * block_pairs, kLanes, [](VL s) { return signed_pairs(s); });
  for (int64_t row = 0; row < x.m; row += kTileRows) {
    const int64_t real = std::min<int64_t>(kTileRows, x.m - row);
    for (int64_t i = 0; i < real; ++i)  // rows are padded to whole vectors
      take_apart(x.u + (row + i) * x.stride, (w.quads + kLanes - 1) / kLanes * kLanes * 4,
                 rows.data() + i * stride, kLanes, [](VL u) { return unsigned_pairs(u); });
    const auto at = [&](int64_t block) { return weights.data() + (block - first) * block_pairs; };
    int64_t b = first;
    if (real == kTileRows) {
      for (; b + kTileBlocks <= last; b += kTileBlocks)
        tile_of_pairs<kTileRows, kTileBlocks>(rows.data(), stride, at(b), x, w, row, b, y);
      for (; b < last; ++b) tile_of_pairs<kTileRows, 1>(rows.data(), stride, at(b), x, w, row, b, y);
    } else {
      for (; b < last; ++b)
        for (int64_t i = 0; i < real; ++i)
          tile_of_pairs<1, 1>(rows.data() + i * stride, stride, at(b), x, w, row + i, b, y);
    }
  }
}
#else
template <class T>
void panel8_any(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t first, int64_t last, T* y) {
  int64_t row = 0;
  for (; row + kTileRows <= x.m; row += kTileRows) rows8<kTileRows, kTileBlocks>(x, w, row, first, last, y);
  with_rows(x.m - row, [&](auto m) { rows8<m, kTileBlocks>(x, w, row, first, last, y); });
}
#endif

// Calls f(rows, blocks, first row, first block, last block) for parts of the rows that fit the registers:
// with two vectors per block more than four rows go over a block, still in the cache, again.
template <class Function>
HWY_INLINE void with_parts(int64_t m, int64_t first, int64_t last, const Function& f) {
  const int64_t most = kParts == 2 ? 4 : 8, passes = (m + most - 1) / most, rows = (m + passes - 1) / passes;
  const int64_t step = passes == 1 ? last - first : 1;
  for (int64_t block = first; block < last; block += step)
    for (int64_t row = 0; row < m; row += rows)
      with_rows(std::min(rows, m - row),
                [&](auto count) { f(count, row, block, std::min(block + step, last)); });
}

// Blocks at once, so that a few rows have about `vectors` sums under way.
constexpr int few_blocks(int m, int vectors) {
  return std::max(1, vectors / (m == 1 ? 1 : m == 2 ? 2 : m <= 4 && kParts == 1 ? 2 : 4) / kParts);
}

template <class T>
void few8_any(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t first, int64_t last, T* y) {
  with_parts(x.m, first, last, [&](auto m, int64_t row, int64_t begin, int64_t end) {
    rows8<m, few_blocks(m, 4)>(x, w, row, begin, end, y);
  });
}

// The even and the odd quad of 64 packed bytes, as 16 times their values.
struct Nibbles {
  VL even, odd;
};
HWY_INLINE Nibbles unpack(VL packed) {
  const VL high = hn::Set(L(), static_cast<int32_t>(0xF0F0F0F0));
  return {hn::And(hn::ShiftLeft<4>(packed), high), hn::And(packed, high)};
}

// The multiples of a group's columns.
HWY_INLINE VL load_multiples(const int8_t* from) {
  return hn::PromoteTo(L(), hn::LoadU(hn::Rebind<int8_t, L>(), from));
}

template <int M, int B, class T>
HWY_INLINE void tile4(const low_bit::Rows& x, const low_bit::Weight4& w, int64_t row, int64_t block, T* y) {
  const int64_t groups = w.quads / w.group_quads;
  VL total[M][B][kParts];
  clear(total);
  for (int64_t g = 0; g < groups; ++g) {
    VL acc[M][B][kParts];
    clear(acc);
    for (int64_t q = g * w.group_quads; q < (g + 1) * w.group_quads; q += 2)
      for (int b = 0; b < B; ++b) {
        const uint8_t* from = w.w + ((block + b) * w.quads + q) / 2 * kQuadBytes;
        if (M <= 2) __builtin_prefetch(from + 1024);
        for (int p = 0; p < kParts; ++p) {
          const Nibbles weight = unpack(load_quads(from + p * 4 * kLanes));
          for (int i = 0; i < M; ++i) {
            const uint8_t* u = x.u + (row + i) * x.stride + 4 * q;
            acc[i][b][p] = quad_dot(acc[i][b][p], broadcast_quad(u), weight.even);
            acc[i][b][p] = quad_dot(acc[i][b][p], broadcast_quad(u + 4), weight.odd);
          }
        }
      }
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < kParts; ++p) {
        const VL multiple = load_multiples(w.multiple + ((block + b) * groups + g) * kColumns + p * kLanes);
        for (int i = 0; i < M; ++i)
          total[i][b][p] = hn::Add(total[i][b][p], hn::Mul(hn::ShiftRight<4>(acc[i][b][p]), multiple));
      }
  }
  store_tile(total, x, w, row, block, y);
}

// Measured: one or two rows read blocks of up to 32 KiB fastest one after the other, longer ones side by
// side.
constexpr int64_t kShortBlock = 32 << 10;

template <class T>
void few4_any(const low_bit::Rows& x, const low_bit::Weight4& w, int64_t first, int64_t last, T* y) {
  with_parts(x.m, first, last, [&](auto m, int64_t row, int64_t begin, int64_t end) {
    int64_t block = begin;
    if (m > 2 || w.quads / 2 * kQuadBytes > kShortBlock) {
      constexpr int blocks = few_blocks(m, 4);
      for (; block + blocks <= end; block += blocks) tile4<m, blocks>(x, w, row, block, y);
    }
    for (; block < end; ++block) tile4<m, 1>(x, w, row, block, y);
  });
}

void widen4_blocks(const low_bit::Weight4& from, int64_t first, int64_t last, int8_t* to) {
  const L l;
  const int64_t groups = from.quads / from.group_quads;
  const auto times = [&](VL bytes, VL multiple) {
    VL out = hn::Zero(l);
    const auto one = [&](VL high_byte, auto shift) {
      const VL product = hn::Mul(hn::ShiftRight<28>(high_byte), multiple);
      out = hn::Or(out, hn::ShiftLeft<shift>(hn::And(product, hn::Set(l, 0xFF))));
    };
    one(hn::ShiftLeft<24>(bytes), std::integral_constant<int, 0>());
    one(hn::ShiftLeft<16>(bytes), std::integral_constant<int, 8>());
    one(hn::ShiftLeft<8>(bytes), std::integral_constant<int, 16>());
    one(bytes, std::integral_constant<int, 24>());
    return out;
  };
  for (int64_t block = first; block < last; ++block)
    for (int64_t g = 0; g < groups; ++g)
      for (int p = 0; p < kParts; ++p) {
        const VL multiple = load_multiples(from.multiple + (block * groups + g) * kColumns + p * kLanes);
        for (int64_t q = g * from.group_quads; q < (g + 1) * from.group_quads; q += 2) {
          const Nibbles weight =
              unpack(load_quads(from.w + (block * from.quads + q) / 2 * kQuadBytes + p * 4 * kLanes));
          int8_t* out = to + ((block - first) * from.quads + q) * kQuadBytes + p * 4 * kLanes;
          hn::StoreU(times(weight.even, multiple), l, reinterpret_cast<int32_t*>(out));
          hn::StoreU(times(weight.odd, multiple), l, reinterpret_cast<int32_t*>(out + kQuadBytes));
        }
      }
}

const char* low_bit_target() {
  return hwy::TargetName(HWY_TARGET);
}
float quantise_bf16(const bf16* x, int64_t k, uint8_t* u, int64_t padded) {
  return quantise_row(x, k, u, padded);
}
float quantise_f32(const float* x, int64_t k, uint8_t* u, int64_t padded) {
  return quantise_row(x, k, u, padded);
}
void panel8_bf16(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t a, int64_t b, bf16* y) {
  panel8_any(x, w, a, b, y);
}
void panel8_f32(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t a, int64_t b, float* y) {
  panel8_any(x, w, a, b, y);
}
void few8_bf16(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t a, int64_t b, bf16* y) {
  few8_any(x, w, a, b, y);
}
void few8_f32(const low_bit::Rows& x, const low_bit::Weight8& w, int64_t a, int64_t b, float* y) {
  few8_any(x, w, a, b, y);
}
void few4_bf16(const low_bit::Rows& x, const low_bit::Weight4& w, int64_t a, int64_t b, bf16* y) {
  few4_any(x, w, a, b, y);
}
void few4_f32(const low_bit::Rows& x, const low_bit::Weight4& w, int64_t a, int64_t b, float* y) {
  few4_any(x, w, a, b, y);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(low_bit_target);
HWY_EXPORT(quantise_bf16);
HWY_EXPORT(quantise_f32);
HWY_EXPORT(panel8_bf16);
HWY_EXPORT(panel8_f32);
HWY_EXPORT(few8_bf16);
HWY_EXPORT(few8_f32);
HWY_EXPORT(few4_bf16);
HWY_EXPORT(few4_f32);
HWY_EXPORT(widen4_blocks);

namespace low_bit {

float quantise(const bf16* x, int64_t k, uint8_t* u, int64_t padded) {
  return HWY_DYNAMIC_DISPATCH(quantise_bf16)(x, k, u, padded);
}
float quantise(const float* x, int64_t k, uint8_t* u, int64_t padded) {
  return HWY_DYNAMIC_DISPATCH(quantise_f32)(x, k, u, padded);
}
void panel8(const Rows& x, const Weight8& w, int64_t first, int64_t last, bf16* y) {
  HWY_DYNAMIC_DISPATCH(panel8_bf16)(x, w, first, last, y);
}
void panel8(const Rows& x, const Weight8& w, int64_t first, int64_t last, float* y) {
  HWY_DYNAMIC_DISPATCH(panel8_f32)(x, w, first, last, y);
}
void few8(const Rows& x, const Weight8& w, int64_t first, int64_t last, bf16* y) {
  HWY_DYNAMIC_DISPATCH(few8_bf16)(x, w, first, last, y);
}
void few8(const Rows& x, const Weight8& w, int64_t first, int64_t last, float* y) {
  HWY_DYNAMIC_DISPATCH(few8_f32)(x, w, first, last, y);
}
void few4(const Rows& x, const Weight4& w, int64_t first, int64_t last, bf16* y) {
  HWY_DYNAMIC_DISPATCH(few4_bf16)(x, w, first, last, y);
}
void few4(const Rows& x, const Weight4& w, int64_t first, int64_t last, float* y) {
  HWY_DYNAMIC_DISPATCH(few4_f32)(x, w, first, last, y);
}
void widen4(const Weight4& from, int64_t first, int64_t last, int8_t* to) {
  HWY_DYNAMIC_DISPATCH(widen4_blocks)(from, first, last, to);
}

const char* target_name() {
  return HWY_DYNAMIC_DISPATCH(low_bit_target)();
}

}  // namespace low_bit
}  // namespace glimpse
#endif
