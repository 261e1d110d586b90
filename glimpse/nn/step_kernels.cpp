#define HWY_WANT_AVX3_DL 1  // the level that has 8-bit dot products
#include "glimpse/nn/step_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/step_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/block_store-inl.h"
#include "glimpse/nn/quads-inl.h"
#include "glimpse/nn/rows-inl.h"

#include <algorithm>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// A tile of rows x blocks keeps the sums of a group and those of all groups in registers.
#if HWY_TARGET <= HWY_AVX3
constexpr int kStepRows = 4, kStepBlocks = 3;  // 2 x 12 of 32
#else
constexpr int kStepRows = 6 / kParts > 0 ? 6 / kParts : 1, kStepBlocks = 1;  // 2 x 6 of 16
#endif

// What the steps of two quads stand for.
struct Quads {
  VL even, odd;
};

#if HWY_TARGET == HWY_SCALAR
struct Table {
  const uint8_t* values;
};
HWY_INLINE Table load_table(const uint8_t* from) {
  return {from};
}
HWY_INLINE VL look_up(Table table, VL steps) {
  uint32_t in = static_cast<uint32_t>(hn::GetLane(steps)), out = 0;
  for (int byte = 0; byte < 4; ++byte) out |= uint32_t{table.values[in >> 8 * byte & 15]} << 8 * byte;
  return hn::Set(L(), static_cast<int32_t>(out));
}
#else
using B8 = hn::Repartition<uint8_t, L>;
using Table = hn::Vec<B8>;
HWY_INLINE Table load_table(const uint8_t* from) {
  return hn::LoadDup128(B8(), from);
}
HWY_INLINE VL look_up(Table table, VL steps) {
  return hn::BitCast(L(), hn::TableLookupBytes(table, hn::BitCast(B8(), steps)));
}
#endif

HWY_INLINE Quads unpack_steps(Table table, VL packed) {
  const VL low = hn::Set(L(), 0x0F0F0F0F);
  return {look_up(table, hn::And(packed, low)), look_up(table, hn::And(hn::ShiftRight<4>(packed), low))};
}

HWY_INLINE VL broadcast_signed(const int8_t* from) {
  return broadcast_quad(reinterpret_cast<const uint8_t*>(from));
}

HWY_INLINE VF load_halves(const uint16_t* from) {
  const hn::Rebind<hwy::float16_t, LF> h;
  return hn::PromoteTo(LF(), hn::LoadU(h, reinterpret_cast<const hwy::float16_t*>(from)));
}

// Rows [row, row + M) and blocks [block, block + B). `load(b, part, quad)` gives the weights of two quads.
template <int M, int B, class Load, class T>
HWY_INLINE void tile_of_steps(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, const Load& load,
                              int64_t row, int64_t block, T* y) {
  const LF f;
  const int64_t groups = w.quads / w.group_quads;
  VF total[M][B][kParts];
  clear(total);
  for (int64_t g = 0; g < groups; ++g) {
    VL acc[M][B][kParts];
    clear(acc);
    for (int64_t q = g * w.group_quads; q < (g + 1) * w.group_quads; q += 2)
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < kParts; ++p) {
          const Quads weight = load(b, p, q);
          for (int i = 0; i < M; ++i) {
            const int8_t* from = x.x + (row + i) * x.stride + 4 * q;
            acc[i][b][p] = quad_dot(acc[i][b][p], weight.even, broadcast_signed(from));
            acc[i][b][p] = quad_dot(acc[i][b][p], weight.odd, broadcast_signed(from + 4));
          }
        }
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < kParts; ++p) {
        const uint16_t* from = w.group + ((block + b) * groups + g) * 2 * kColumns + p * kLanes;
        const VF scale = load_halves(from), zero = load_halves(from + kColumns);
        for (int i = 0; i < M; ++i) {
          const VF sum = hn::Set(f, x.sum[(row + i) * x.groups + g]);
          const VF own = hn::MulAdd(zero, sum, hn::ConvertTo(f, acc[i][b][p]));
          total[i][b][p] = hn::MulAdd(scale, own, total[i][b][p]);
        }
      }
  }
  for (int b = 0; b < B; ++b) {
    const int64_t column = (block + b) * kColumns;
    for (int i = 0; i < M; ++i) {
      VF sums[kParts];
      for (int p = 0; p < kParts; ++p)
        sums[p] = hn::Mul(total[i][b][p], hn::LoadU(f, w.scale + column + p * kLanes));
      store_block(sums, x.scale[row + i], w.bias, column, w.n, y + (row + i) * w.n);
    }
  }
}

template <int M, int B, class T>
HWY_INLINE void tile_of_nibbles(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, Table table,
                                int64_t row, int64_t block, T* y) {
  const auto load = [&](int b, int p, int64_t q) {
    const uint8_t* from = w.w + ((block + b) * w.quads + q) / 2 * kQuadBytes + p * 4 * kLanes;
    if (M <= 2) __builtin_prefetch(from + 1024);
    return unpack_steps(table, load_quads(from));
  };
  tile_of_steps<M, B>(x, w, load, row, block, y);
}

// Few rows read the weights once where they fit the registers, else a block, still in the cache, again.
template <class T>
void few_steps_any(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t first, int64_t last,
                   T* y) {
  const Table table = load_table(w.table);
  const int64_t most = kParts == 1 ? 8 : 4;
  if (x.m == 1) {
    constexpr int blocks = kParts == 1 ? 4 : kParts == 2 ? 2 : 1;
    for (; first + blocks <= last; first += blocks) tile_of_nibbles<1, blocks>(x, w, table, 0, first, y);
    for (; first < last; ++first) tile_of_nibbles<1, 1>(x, w, table, 0, first, y);
    return;
  }
  if (kParts == 1 && x.m <= 4)
    for (; first + 2 <= last; first += 2)
      with_rows(x.m, [&](auto m) { tile_of_nibbles<m <= 4 ? m : 1, 2>(x, w, table, 0, first, y); });
  for (int64_t block = first; block < last; ++block)
    for (int64_t row = 0; row < x.m; row += most)
      with_rows(std::min(most, x.m - row),
                [&](auto m) { tile_of_nibbles<m, 1>(x, w, table, row, block, y); });
}

// What the steps of a panel of blocks stand for, as bytes, goes to the second-level cache once for all rows.
template <class T>
void panel_steps_any(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t first,
                     int64_t last, T* y) {
  thread_local std::vector<uint8_t> bytes;
  bytes.resize((last - first) * w.quads * kQuadBytes);
  const Table table = load_table(w.table);
  for (int64_t pair = 0; pair < (last - first) * w.quads / 2; ++pair)
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = p * 4 * kLanes;
      const Quads both =
          unpack_steps(table, load_quads(w.w + (first * w.quads / 2 + pair) * kQuadBytes + at));
      uint8_t* const to = bytes.data() + 2 * pair * kQuadBytes + at;
      hn::StoreU(both.even, L(), reinterpret_cast<int32_t*>(to));
      hn::StoreU(both.odd, L(), reinterpret_cast<int32_t*>(to + kQuadBytes));
    }
  const auto tile = [&](auto rows, auto blocks, int64_t row, int64_t block) {
    const uint8_t* const own = bytes.data() + (block - first) * w.quads * kQuadBytes;
    const auto load = [&](int b, int p, int64_t q) {
      const uint8_t* from = own + (b * w.quads + q) * kQuadBytes + p * 4 * kLanes;
      return Quads{load_quads(from), load_quads(from + kQuadBytes)};
    };
    tile_of_steps<rows, blocks>(x, w, load, row, block, y);
  };
  const auto across = [&](auto rows, int64_t row) {
    int64_t b = first;
    for (; b + kStepBlocks <= last; b += kStepBlocks)
      tile(rows, std::integral_constant<int, kStepBlocks>(), row, b);
    for (; b < last; ++b) tile(rows, std::integral_constant<int, 1>(), row, b);
  };
  int64_t row = 0;
  for (; row + kStepRows <= x.m; row += kStepRows) across(std::integral_constant<int, kStepRows>(), row);
  for (; row < x.m; ++row) across(std::integral_constant<int, 1>(), row);
}

const char* step_target() {
  return hwy::TargetName(HWY_TARGET);
}
void few_steps_bf16(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t a, int64_t b,
                    bf16* y) {
  few_steps_any(x, w, a, b, y);
}
void few_steps_f32(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t a, int64_t b,
                   float* y) {
  few_steps_any(x, w, a, b, y);
}
void panel_steps_bf16(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t a, int64_t b,
                      bf16* y) {
  panel_steps_any(x, w, a, b, y);
}
void panel_steps_f32(const low_bit::SignedRows& x, const low_bit::SteppedWeight& w, int64_t a, int64_t b,
                     float* y) {
  panel_steps_any(x, w, a, b, y);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(step_target);
HWY_EXPORT(few_steps_bf16);
HWY_EXPORT(few_steps_f32);
HWY_EXPORT(panel_steps_bf16);
HWY_EXPORT(panel_steps_f32);

namespace low_bit {

void few_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, bf16* y) {
  HWY_DYNAMIC_DISPATCH(few_steps_bf16)(x, w, first, last, y);
}
void few_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, float* y) {
  HWY_DYNAMIC_DISPATCH(few_steps_f32)(x, w, first, last, y);
}
void panel_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, bf16* y) {
  HWY_DYNAMIC_DISPATCH(panel_steps_bf16)(x, w, first, last, y);
}
void panel_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, float* y) {
  HWY_DYNAMIC_DISPATCH(panel_steps_f32)(x, w, first, last, y);
}

const char* step_target_name() {
  return HWY_DYNAMIC_DISPATCH(step_target)();
}

}  // namespace low_bit
}  // namespace glimpse
#endif
