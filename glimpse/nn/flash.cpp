#include "glimpse/nn/flash.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "glimpse/nn/flash.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "glimpse/nn/tile-inl.h"

#include <algorithm>
#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// Keys per block: whole tiles of both widths, and keys and values of 128 numbers fit the second-level cache.
constexpr int64_t kKeys = 60;
// The scores of keys that a row does not see. Finite, so that differences of two are.
constexpr float kUnseen = -1e30f;

int64_t flash_tile_rows() {
  return tile_rows();
}

// Scratch memory: everything that one task holds. A tile is rows of one head; rows are in lanes, so no sum or
// maximum runs across lanes.
template <class Step>
struct FlashScratch {
  Step* q;           // [tiles][d in steps][rows]
  float* out;        // [tiles][dv][rows], not yet divided by `sum`
  float *top, *sum;  // [tiles][rows]: greatest score, sum of exponentials
  Step *k, *v;       // [kKeys][d in steps], [kKeys in steps][dv]
  float* scores;     // [kKeys][rows]
  Step* p;           // [kKeys in steps][rows]: their exponentials; floats take the place of the scores
  float* factors;    // [rows]

  FlashScratch(float* memory, int64_t tiles, int64_t rows, int64_t d, int64_t dv) {
    const auto take = [&](auto*& part, int64_t size) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory);
      memory += size;
    };
    take(q, tiles * steps_of<Step>(d) * rows);
    take(out, tiles * dv * rows);
    take(top, tiles * rows);
    take(sum, tiles * rows);
    take(k, kKeys * steps_of<Step>(d));
    take(v, steps_of<Step>(kKeys) * dv);
    take(scores, kKeys * rows);
    p = reinterpret_cast<Step*>(scores);
    if constexpr (std::is_same_v<Step, Pair>) take(p, steps_of<Step>(kKeys) * rows);
    take(factors, rows);
  }
};

// For either kind of steps.
int64_t flash_scratch(int64_t count, int64_t group, int64_t d, int64_t dv) {
  const int64_t rows = tile_rows(), tiles = (count + rows - 1) / rows * group;
  return tiles * rows * (d + dv + 2) + kKeys * (d + dv + 2 * rows) + rows;
}

// Values [n, dv] in steps of keys.
template <class T>
void pack_values(const T* v, int64_t row, int64_t n, int64_t dv, float* to) {
  for (int64_t c = 0; c < n; ++c) widen_row(v + c * row, dv, to + c * dv);
}
void pack_values(const bf16* v, int64_t row, int64_t n, int64_t dv, Pair* to) {
  for (int64_t c = 0; c < n; c += 2)
    for (int64_t i = 0; i < dv; ++i)
      to[c / 2 * dv + i] = v[c * row + i] | (c + 1 < n ? Pair{v[(c + 1) * row + i]} << 16 : 0);
}

// A vector of exponentials as the key's step.
HWY_INLINE void put_step(V e, int64_t c, float* p) {
  hn::StoreU(e, F(), p + c * tile_rows());
}
HWY_INLINE void put_step(V e, int64_t c, Pair* p) {
  const U u;
  Pair* const to = p + c / 2 * tile_rows();
  const VU bits = rounded_bits(e);
  hn::StoreU(c % 2 ? hn::Or(hn::LoadU(u, to), hn::ShiftLeft<16>(bits)) : bits, u, to);
}

// Scores of `count` keys from `key` on become exponentials in p; factors are what earlier results shrink by.
// seen: behind the last key that the tile's first row sees; the next row sees one more if `step`. Of them all
// but the last `window` are hidden from a row, unless it is 0. A row that sees no key of this block gains
// something that the first one it sees wipes out: factors are 0 then.
template <class Step>
HWY_INLINE void online_softmax(float* scores, int64_t key, int64_t count, int64_t seen, int64_t step,
                               int64_t window, float scale, Step* p, float* top, float* sum, float* factors) {
  const F f;
  const int64_t lanes = hn::Lanes(f), rows = tile_rows();
  const V scales = hn::Set(f, scale);
  for (int v = 0; v < kVectors; ++v) {
    float* const own = scores + v * lanes;
    const V limit =
        hn::MulAdd(hn::Iota(f, static_cast<float>(v * lanes)), hn::Set(f, static_cast<float>(step)),
                   hn::Set(f, static_cast<float>(seen - key)));  // keys of this block that are seen
    for (int64_t c = std::max<int64_t>(0, seen - key); c < count; ++c)
      hn::StoreU(hn::IfThenElse(hn::Gt(limit, hn::Set(f, static_cast<float>(c))),
                                hn::LoadU(f, own + c * rows), hn::Set(f, kUnseen)),
                 f, own + c * rows);
    const V hidden = hn::Sub(limit, hn::Set(f, static_cast<float>(window)));
    for (int64_t c = 0; window > 0 && c < std::min(count, seen + (rows - 1) * step - window - key); ++c)
      hn::StoreU(hn::IfThenElse(hn::Ge(hn::Set(f, static_cast<float>(c)), hidden),
                                hn::LoadU(f, own + c * rows), hn::Set(f, kUnseen)),
                 f, own + c * rows);
    const V before = hn::LoadU(f, top + v * lanes);
    V most = before;
    for (int64_t c = 0; c < count; ++c) most = hn::Max(most, hn::LoadU(f, own + c * rows));
    V total = hn::Zero(f);
    for (int64_t c = 0; c < count; ++c) {
      const V e = exp_of(hn::Mul(hn::Sub(hn::LoadU(f, own + c * rows), most), scales));
      put_step(e, c, p + v * lanes);
      total = hn::Add(total, e);
    }
    const V factor = exp_of(hn::Mul(hn::Sub(before, most), scales));
    hn::StoreU(factor, f, factors + v * lanes);
    hn::StoreU(most, f, top + v * lanes);
    hn::StoreU(hn::MulAdd(hn::LoadU(f, sum + v * lanes), factor, total), f, sum + v * lanes);
  }
}

template <class Step, class T>
void attend_any(const flash::Heads<T>& a, int64_t first, int64_t last, T* out, float* memory) {
  const F f;
  const int64_t rows = tile_rows(), across = (last - first + rows - 1) / rows, tiles_all = across * a.group,
                depth = steps_of<Step>(a.d);
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.d));
  const FlashScratch<Step> s(memory, tiles_all, rows, a.d, a.dv);
  const auto seen_by = [&](int64_t row) { return a.causal ? a.keys - a.rows + row + 1 : a.keys; };
  const auto hidden_from = [&](int64_t row) {
    return a.window > 0 ? std::max<int64_t>(0, seen_by(row) - a.window) : 0;
  };
  const auto row_of = [&](int64_t t) { return first + t % across * rows; };
  for (int64_t t = 0; t < tiles_all; ++t)
    pack_rows(a.q + row_of(t) * a.q_row + t / across * a.q_head, a.q_row, last - row_of(t), a.d,
              s.q + t * depth * rows);
  std::fill_n(s.out, tiles_all * a.dv * rows, 0.0f);
  std::fill_n(s.top, tiles_all * rows, kUnseen);
  std::fill_n(s.sum, tiles_all * rows, 0.0f);

  for (int64_t key = hidden_from(first) / kKeys * kKeys; key < seen_by(last - 1); key += kKeys) {
    const int64_t block = std::min(kKeys, seen_by(last - 1) - key);
    for (int64_t c = 0; c < block; ++c) copy_steps(a.k + (key + c) * a.k_row, 0, depth, a.d, s.k + c * depth);
    pack_values(a.v + key * a.v_row, a.v_row, block, a.dv, s.v);
    for (int64_t t = 0; t < tiles_all; ++t) {
      const int64_t row = row_of(t), count = std::min(block, seen_by(std::min(row + rows, last) - 1) - key);
      if (count <= 0 || key + count <= hidden_from(row)) continue;
      tiles(s.q + t * depth * rows, Operand<Step>{s.k, depth, 1}, depth, count, s.scores, rows, FromZero());
      online_softmax(s.scores, key, count, seen_by(row), a.causal ? 1 : 0, a.window, scale, s.p,
                     s.top + t * rows, s.sum + t * rows, s.factors);
      tiles(s.p, Operand<Step>{s.v, 1, a.dv}, steps_of<Step>(count), a.dv, s.out + t * a.dv * rows, rows,
            FromScaled{s.factors});
    }
  }
  for (int64_t t = 0; t < tiles_all; ++t) {
    float* const sums = s.out + t * a.dv * rows;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lane = v * hn::Lanes(f);
      const V inverse = hn::Div(hn::Set(f, 1.0f), hn::LoadU(f, s.sum + t * rows + lane));
      for (int64_t i = lane; i < a.dv * rows; i += rows)
        hn::StoreU(hn::Mul(hn::LoadU(f, sums + i), inverse), f, sums + i);
    }
    write_rows(sums, rows, a.dv, std::min(rows, last - row_of(t)), nullptr,
               out + row_of(t) * a.out_row + t / across * a.out_head, a.out_row);
  }
}

void attend_bf16(const flash::Heads<bf16>& a, int64_t first, int64_t last, bf16* out, float* scratch) {
  if (a.pairs)
    attend_any<Pair>(a, first, last, out, scratch);
  else
    attend_any<float>(a, first, last, out, scratch);
}
void attend_f32(const flash::Heads<float>& a, int64_t first, int64_t last, float* out, float* scratch) {
  attend_any<float>(a, first, last, out, scratch);
}
const char* flash_target() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(flash_tile_rows);
HWY_EXPORT(flash_scratch);
HWY_EXPORT(attend_bf16);
HWY_EXPORT(attend_f32);
HWY_EXPORT(flash_target);

namespace flash {

int64_t block_rows(int64_t group) {
  const int64_t rows = HWY_DYNAMIC_DISPATCH(flash_tile_rows)();
  return std::max<int64_t>(1, 8 / group) * rows;
}

int64_t scratch_size(int64_t rows, int64_t group, int64_t d, int64_t dv) {
  return HWY_DYNAMIC_DISPATCH(flash_scratch)(rows, group, d, dv);
}

void attend(const Heads<bf16>& heads, int64_t first, int64_t last, bf16* out, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attend_bf16)(heads, first, last, out, scratch);
}
void attend(const Heads<float>& heads, int64_t first, int64_t last, float* out, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attend_f32)(heads, first, last, out, scratch);
}

const char* target_name() {
  return HWY_DYNAMIC_DISPATCH(flash_target)();
}

}  // namespace flash
}  // namespace glimpse
#endif
