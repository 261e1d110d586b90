#include "glimpse/nn/kv_codes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/kv_codes.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/bf16-inl.h"
#include "glimpse/nn/rows-inl.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// Vectors of a group: no longer than half of it, as 4-bit codes lie.
template <int Group>
using GroupTag = hn::CappedTag<float, Group / 2>;

// Groups without a larger number count as zeros, so that the scale's inverse is finite.
constexpr float kLeast = 1e-35f;

void hadamard(float* x, int64_t d) {
  const F f;
  const int64_t lanes = hn::Lanes(f), size = d & -d;
  for (int64_t half = 1; half < size; half *= 2)
    for (int64_t begin = 0; begin < d; begin += 2 * half) {
      float *a = x + begin, *b = a + half;
      int64_t i = 0;
      for (; i + lanes <= half; i += lanes) {
        const V va = hn::LoadU(f, a + i), vb = hn::LoadU(f, b + i);
        hn::StoreU(hn::Add(va, vb), f, a + i);
        hn::StoreU(hn::Sub(va, vb), f, b + i);
      }
      for (; i < half; ++i) {
        const float left = a[i], right = b[i];
        a[i] = left + right;
        b[i] = left - right;
      }
    }
  const float norm = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t i = 0; i < d; ++i) x[i] *= norm;
}

// Scale and inverse of a group.
template <int Bits, int Group>
HWY_INLINE float take_scale(const float* x, bf16* scale) {
  const GroupTag<Group> f;
  auto most = hn::LoadU(f, x), least = most, zeros = hn::Zero(f);  // 0 x everything: NaN if one is not finite
  for (int64_t i = 0; i < Group; i += hn::Lanes(f)) {
    const auto v = hn::LoadU(f, x + i);
    most = hn::Max(most, v);
    least = hn::Min(least, v);
    zeros = hn::MulAdd(v, hn::Zero(f), zeros);
  }
  const float high = hn::GetLane(hn::MaxOfLanes(f, most)), low = hn::GetLane(hn::MinOfLanes(f, least));
  if (hn::GetLane(hn::SumOfLanes(f, zeros)) != 0) {
    narrow_one(NAN, scale);
    return 0;
  }
  if (std::max(high, -low) < kLeast) {
    *scale = 0;
    return 0;
  }
  narrow_one(Bits == 8 ? std::max(high, -low) / 127.0f : (-low > high ? low : high) / -8.0f, scale);
  return 1.0f / widen_one(*scale);
}

template <int Bits, int Group>
void quantise_groups(const float* x, const kv::RowShape& shape, uint8_t* to) {
  const GroupTag<Group> f;
  const hn::RebindToSigned<decltype(f)> s;
  const auto lanes = static_cast<int64_t>(hn::Lanes(f));
  uint8_t* const scales = to + shape.code_bytes();
  for (int64_t g = 0; g < shape.d / Group; ++g, x += Group, to += Group * Bits / 8) {
    bf16 scale;
    const auto inverse = hn::Set(f, take_scale<Bits, Group>(x, &scale));
    __builtin_memcpy(scales + 2 * g, &scale, 2);
    const auto codes = [&](int64_t i, int least, int most) {
      // What is not finite becomes 0, as its scale says enough.
      const auto v = hn::LoadU(f, x + i);
      const auto scaled = hn::IfThenElseZero(hn::IsFinite(v), hn::Mul(v, inverse));
      return hn::Min(hn::Max(hn::NearestInt(scaled), hn::Set(s, least)), hn::Set(s, most));
    };
    if constexpr (Bits == 8) {
      const hn::Rebind<int8_t, decltype(f)> b;
      for (int64_t i = 0; i < Group; i += lanes)
        hn::StoreU(hn::DemoteTo(b, codes(i, -127, 127)), b, reinterpret_cast<int8_t*>(to) + i);
    } else {
      const hn::Rebind<uint8_t, decltype(f)> b;
      const auto middle = hn::Set(s, 8);
      for (int64_t i = 0; i < Group / 2; i += lanes) {
        const auto low = hn::Add(codes(i, -8, 7), middle),
                   high = hn::Add(codes(i + Group / 2, -8, 7), middle);
        hn::StoreU(hn::DemoteTo(b, hn::Or(low, hn::ShiftLeft<4>(high))), b, to + i);
      }
    }
  }
}

// What a group's numbers are made with: the scale and, in 4 bits, what the 8 in its codes is taken off with.
template <class D, int Bits>
struct GroupScale {
  hn::Vec<D> scale, offset;
  HWY_INLINE void load(const uint8_t* scales, int64_t g) {
    bf16 bits;
    __builtin_memcpy(&bits, scales + 2 * g, 2);
    const float value = widen_one(bits);
    scale = hn::Set(D(), value);
    if (Bits == 4) offset = hn::Set(D(), -8 * value);
  }
};

// The numbers [i, i + lanes) of a group's first and of its second half, from its codes. Exact: products of 8
// bits each.
template <int Group, int Bits, class D>
HWY_INLINE void load_halves(const uint8_t* codes, int64_t i, const GroupScale<D, Bits>& by, hn::Vec<D>& first,
                            hn::Vec<D>& second) {
  const D f;
  const hn::RebindToSigned<D> s;
  if constexpr (Bits == 8) {
    const hn::Rebind<int8_t, D> b;
    const auto* const own = reinterpret_cast<const int8_t*>(codes);
    first = hn::Mul(hn::ConvertTo(f, hn::PromoteTo(s, hn::LoadU(b, own + i))), by.scale);
    second = hn::Mul(hn::ConvertTo(f, hn::PromoteTo(s, hn::LoadU(b, own + Group / 2 + i))), by.scale);
  } else {
    const hn::Rebind<uint8_t, D> b;
    const auto both = hn::PromoteTo(s, hn::LoadU(b, codes + i));
    first = hn::MulAdd(hn::ConvertTo(f, hn::And(both, hn::Set(s, 15))), by.scale, by.offset);
    second = hn::MulAdd(hn::ConvertTo(f, hn::ShiftRight<4>(both)), by.scale, by.offset);
  }
}

template <int Bits, int Group>
void widen_groups(const uint8_t* rows, int64_t n, const kv::RowShape& shape, float* out) {
  using D = GroupTag<Group>;
  const D f;
  for (; n > 0; --n, rows += shape.bytes())
    for (int64_t g = 0; g < shape.d / Group; ++g, out += Group) {
      GroupScale<D, Bits> by;
      by.load(rows + shape.code_bytes(), g);
      for (int64_t i = 0; i < Group / 2; i += hn::Lanes(f)) {
        hn::Vec<D> first, second;
        load_halves<Group, Bits, D>(rows + g * Group * Bits / 8, i, by, first, second);
        hn::StoreU(first, f, out + i);
        hn::StoreU(second, f, out + Group / 2 + i);
      }
    }
}

// M rows of q against R rows of codes.
template <int Bits, int Group, int M, int R>
HWY_INLINE void dot_block(const float* q, const uint8_t* rows, const kv::RowShape& shape, float* y,
                          int64_t ldy) {
  using D = GroupTag<Group>;
  const D f;
  const int64_t bytes = shape.bytes();
  hn::Vec<D> sum[M][R];
  for (int i = 0; i < M; ++i)
    for (int r = 0; r < R; ++r) sum[i][r] = hn::Zero(f);
  for (int64_t g = 0; g < shape.d / Group; ++g) {
    GroupScale<D, Bits> by[R];
    for (int r = 0; r < R; ++r) by[r].load(rows + r * bytes + shape.code_bytes(), g);
    for (int64_t i = 0; i < Group / 2; i += hn::Lanes(f)) {
      hn::Vec<D> first[R], second[R];
      for (int r = 0; r < R; ++r)
        load_halves<Group, Bits, D>(rows + r * bytes + g * Group * Bits / 8, i, by[r], first[r], second[r]);
      for (int m = 0; m < M; ++m) {
        const float* const own = q + m * shape.d + g * Group + i;
        const auto a = hn::LoadU(f, own), b = hn::LoadU(f, own + Group / 2);
        for (int r = 0; r < R; ++r) sum[m][r] = hn::MulAdd(b, second[r], hn::MulAdd(a, first[r], sum[m][r]));
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) y[m * ldy + r] = hn::GetLane(hn::SumOfLanes(f, sum[m][r]));
}

// Calls f(M as a constant, first row) for as many of the rows at once as the registers hold sums of.
#if HWY_TARGET <= HWY_AVX3
constexpr int kMost = 8;
#else
constexpr int kMost = 4;
#endif
template <class Function>
HWY_INLINE void with_parts(int64_t m, const Function& f) {
  const int64_t passes = (m + kMost - 1) / kMost, rows = (m + passes - 1) / passes;
  for (int64_t row = 0; row < m; row += rows)
    with_rows(std::min(rows, m - row), [&](auto count) {
      if constexpr (count <= kMost) f(count, row);
    });
}

template <int Bits, int Group>
void dots_groups(const float* q, int64_t m, const uint8_t* rows, int64_t n, const kv::RowShape& shape,
                 float* y, int64_t ldy) {
  with_parts(m, [&](auto count, int64_t row) {
    constexpr int at_once = count <= 2 ? 4 : 2;
    const float* const own = q + row * shape.d;
    float* const to = y + row * ldy;
    int64_t s = 0;
    for (; s + at_once <= n; s += at_once)
      dot_block<Bits, Group, count, at_once>(own, rows + s * shape.bytes(), shape, to + s, ldy);
    for (; s < n; ++s) dot_block<Bits, Group, count, 1>(own, rows + s * shape.bytes(), shape, to + s, ldy);
  });
}

// Rows of codes that stay in the first-level cache while their groups are gone through one after the other.
constexpr int64_t kMixRows = 128;

template <int Bits, int Group>
void mix_groups(const float* p, int64_t ldp, int64_t m, const uint8_t* rows, int64_t n,
                const kv::RowShape& shape, float* y) {
  using D = GroupTag<Group>;
  const D f;
  const int64_t bytes = shape.bytes();
  std::fill_n(y, m * shape.d, 0.0f);
  for (int64_t begin = 0; begin < n; begin += kMixRows) {
    const int64_t end = std::min(begin + kMixRows, n);
    with_parts(m, [&](auto count, int64_t row) {
      constexpr int M = count;
      for (int64_t g = 0; g < shape.d / Group; ++g)
        for (int64_t i = 0; i < Group / 2; i += hn::Lanes(f)) {
          float* const to = y + row * shape.d + g * Group + i;
          hn::Vec<D> first[M], second[M];
          for (int k = 0; k < M; ++k) {
            first[k] = hn::LoadU(f, to + k * shape.d);
            second[k] = hn::LoadU(f, to + k * shape.d + Group / 2);
          }
          for (int64_t s = begin; s < end; ++s) {
            const uint8_t* const own = rows + s * bytes;
            GroupScale<D, Bits> by;
            by.load(own + shape.code_bytes(), g);
            hn::Vec<D> a, b;
            load_halves<Group, Bits, D>(own + g * Group * Bits / 8, i, by, a, b);
            for (int k = 0; k < M; ++k) {
              const auto weight = hn::Set(f, p[(row + k) * ldp + s]);
              first[k] = hn::MulAdd(weight, a, first[k]);
              second[k] = hn::MulAdd(weight, b, second[k]);
            }
          }
          for (int k = 0; k < M; ++k) {
            hn::StoreU(first[k], f, to + k * shape.d);
            hn::StoreU(second[k], f, to + k * shape.d + Group / 2);
          }
        }
    });
  }
}

// Calls f(bits, group) with both as constants.
template <class Function>
HWY_INLINE void with_shape(const kv::RowShape& shape, const Function& f) {
  const auto of_bits = [&](auto bits) {
    if (shape.group() == 32)
      f(bits, std::integral_constant<int, 32>());
    else
      f(bits, std::integral_constant<int, 16>());
  };
  if (shape.bits == 8)
    of_bits(std::integral_constant<int, 8>());
  else
    of_bits(std::integral_constant<int, 4>());
}

template <class T>
void quantise_any(const T* x, const kv::RowShape& shape, bool rotated, uint8_t* to) {
  thread_local std::vector<float> wide;
  wide.resize(shape.d);
  for (int64_t i = 0; i < shape.d; ++i) wide[i] = widen_one(x[i]);
  if (rotated) hadamard(wide.data(), shape.d);
  with_shape(shape, [&](auto bits, auto group) { quantise_groups<bits, group>(wide.data(), shape, to); });
}

void quantise_bf16(const bf16* x, const kv::RowShape& shape, bool rotated, uint8_t* to) {
  quantise_any(x, shape, rotated, to);
}
void quantise_f32(const float* x, const kv::RowShape& shape, bool rotated, uint8_t* to) {
  quantise_any(x, shape, rotated, to);
}
void widen_any(const uint8_t* rows, int64_t n, const kv::RowShape& shape, float* out) {
  with_shape(shape, [&](auto bits, auto group) { widen_groups<bits, group>(rows, n, shape, out); });
}
void dots_any(const float* q, int64_t m, const uint8_t* rows, int64_t n, const kv::RowShape& shape, float* y,
              int64_t ldy) {
  with_shape(shape, [&](auto bits, auto group) { dots_groups<bits, group>(q, m, rows, n, shape, y, ldy); });
}
void mix_any(const float* p, int64_t ldp, int64_t m, const uint8_t* rows, int64_t n,
             const kv::RowShape& shape, float* y) {
  with_shape(shape, [&](auto bits, auto group) { mix_groups<bits, group>(p, ldp, m, rows, n, shape, y); });
}
const char* kv_target() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(hadamard);
HWY_EXPORT(quantise_bf16);
HWY_EXPORT(quantise_f32);
HWY_EXPORT(widen_any);
HWY_EXPORT(dots_any);
HWY_EXPORT(mix_any);
HWY_EXPORT(kv_target);

namespace kv {

void rotate(float* x, int64_t d) {
  HWY_DYNAMIC_DISPATCH(hadamard)(x, d);
}
void quantise(const bf16* x, const RowShape& shape, bool rotated, uint8_t* to) {
  HWY_DYNAMIC_DISPATCH(quantise_bf16)(x, shape, rotated, to);
}
void quantise(const float* x, const RowShape& shape, bool rotated, uint8_t* to) {
  HWY_DYNAMIC_DISPATCH(quantise_f32)(x, shape, rotated, to);
}
void widen(const uint8_t* rows, int64_t n, const RowShape& shape, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_any)(rows, n, shape, out);
}
void dots(const float* q, int64_t m, const uint8_t* rows, int64_t n, const RowShape& shape, float* y,
          int64_t ldy) {
  HWY_DYNAMIC_DISPATCH(dots_any)(q, m, rows, n, shape, y, ldy);
}
void mix(const float* p, int64_t ldp, int64_t m, const uint8_t* rows, int64_t n, const RowShape& shape,
         float* y) {
  HWY_DYNAMIC_DISPATCH(mix_any)(p, ldp, m, rows, n, shape, y);
}
const char* target_name() {
  return HWY_DYNAMIC_DISPATCH(kv_target)();
}

}  // namespace kv
}  // namespace glimpse
#endif
