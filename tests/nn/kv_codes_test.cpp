// Rows of a KV cache in 8 and 4 bits against the formulas in plain code, and caches made of them.
#include "glimpse/nn/kv_codes.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/ops.h"
#include "nn/every_target.h"
#include "nn/near.h"

using namespace glimpse;
using test::near;
using test::on_every_target;

namespace {

const std::vector<int64_t> kWidths = {16, 32, 48, 64, 80, 96, 128};

float to_bf16(double x) {
  return at::tensor(x, at::kDouble).to(at::kFloat).to(at::kBFloat16).item<float>();
}

// One row as the header says it is: its numbers after rounding, and each number's scale.
void expected_row(const float* x, int64_t d, int bits, double* out, double* scale_of) {
  const int64_t group = d % 32 == 0 ? 32 : 16;
  for (int64_t g = 0; g < d; g += group) {
    float most = 0;
    for (int64_t i = g; i < g + group; ++i)
      if (std::abs(x[i]) > std::abs(most)) most = x[i];
    const float scale = bits == 8 ? to_bf16(std::abs(most) / 127.0f) : to_bf16(most / -8.0f);
    for (int64_t i = g; i < g + group; ++i) {
      const double code = scale == 0 ? 0 : std::nearbyint(x[i] * (1.0f / scale));
      out[i] =
          scale * (bits == 8 ? std::min(127.0, std::max(-127.0, code)) : std::min(7.0, std::max(-8.0, code)));
      scale_of[i] = std::abs(scale);
    }
  }
}

// Rows [n, d] float32 -> bytes one after the other.
std::vector<uint8_t> coded(const at::Tensor& rows, const kv::RowShape& shape, bool rotated = false) {
  std::vector<uint8_t> out(rows.size(0) * shape.bytes());
  for (int64_t i = 0; i < rows.size(0); ++i)
    kv::quantise(rows.const_data_ptr<float>() + i * shape.d, shape, rotated, out.data() + i * shape.bytes());
  return out;
}

at::Tensor widened(const std::vector<uint8_t>& rows, const kv::RowShape& shape) {
  const auto count = static_cast<int64_t>(rows.size()) / shape.bytes();
  at::Tensor out = at::empty({count, shape.d});
  kv::widen(rows.data(), count, shape, out.data_ptr<float>());
  return out;
}

// The normalised Hadamard matrix of the blocks that `d` comes in: [d, d].
at::Tensor hadamard_matrix(int64_t d) {
  const int64_t size = d & -d;
  at::Tensor out = at::zeros({d, d}, at::kDouble);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = i / size * size; j < (i / size + 1) * size; ++j)
      out[i][j] = (__builtin_popcountll((i % size) & (j % size)) % 2 ? -1.0 : 1.0) /
                  std::sqrt(static_cast<double>(size));
  return out;
}

}  // namespace

TEST_CASE("the Hadamard transform") {
  on_every_target(kv::target_name, [] {
    for (const int64_t d : kWidths) {
      CAPTURE(d);
      const at::Tensor x = at::randn({d});
      at::Tensor y = x.clone();
      kv::rotate(y.data_ptr<float>(), d);
      CHECK(near(y, at::mv(hadamard_matrix(d), x.to(at::kDouble)), 1e-6, 1e-6));
      kv::rotate(y.data_ptr<float>(), d);
      CHECK(near(y, x, 1e-6, 1e-6));
    }
  });
}

TEST_CASE("codes are those of the formula, and no further from the numbers than it says") {
  on_every_target(kv::target_name, [] {
    for (const int64_t d : kWidths)
      for (const int bits : {8, 4}) {
        CAPTURE(d);
        CAPTURE(bits);
        const kv::RowShape shape{d, bits};
        CHECK(shape.bytes() == d * bits / 8 + d / (d % 32 == 0 ? 32 : 16) * 2);
        at::Tensor x = at::randn({40, d}) * at::randn({40, 1}).exp();
        x[1].zero_();
        x[2].fill_(-3);
        x[3].mul_(1e-30);
        x[4].mul_(1e30);
        at::Tensor expected = at::empty({40, d}, at::kDouble), scale = at::empty_like(expected);
        for (int64_t i = 0; i < 40; ++i)
          expected_row(x.const_data_ptr<float>() + i * d, d, bits, expected.data_ptr<double>() + i * d,
                       scale.data_ptr<double>() + i * d);
        const at::Tensor got = widened(coded(x, shape), shape).to(at::kDouble);
        CHECK(at::equal(got, expected));
        // Half a step; in 4 bits a whole one where the code would have been 8, or a bit more as the scale is
        // rounded to bf16.
        const at::Tensor steps = at::nan_to_num((got - x.to(at::kDouble)).abs() / scale, 0);
        CHECK(steps.max().item<double>() < (bits == 8 ? 0.5 : 1 + 1.0 / 64) + 1e-4);
        CHECK((steps < 0.5 + 1e-4).to(at::kDouble).mean().item<double>() > 0.95);
      }
  });
}

TEST_CASE("what is not finite stays so") {
  on_every_target(kv::target_name, [] {
    for (const int bits : {8, 4})
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        const kv::RowShape shape{64, bits};
        at::Tensor x = at::randn({1, 64});
        x[0][40] = bad;
        const at::Tensor got = widened(coded(x, shape), shape);
        CHECK(got.narrow(1, 0, 32).isfinite().all().item<bool>());
        CHECK_FALSE(got.narrow(1, 32, 32).isfinite().any().item<bool>());
        CHECK_FALSE(widened(coded(x, shape, true), shape).isfinite().any().item<bool>());
      }
  });
}

TEST_CASE("products with codes are those with the numbers they stand for") {
  on_every_target(kv::target_name, [] {
    for (const int64_t d : kWidths)
      for (const int bits : {8, 4})
        for (const int64_t m : {1, 2, 3, 4, 5, 7, 8})
          for (const int64_t n : {1, 2, 7, 300}) {
            CAPTURE(d);
            CAPTURE(bits);
            CAPTURE(m);
            CAPTURE(n);
            const kv::RowShape shape{d, bits};
            const std::vector<uint8_t> rows = coded(at::randn({n, d}), shape);
            const at::Tensor wide = widened(rows, shape).to(at::kDouble);
            const at::Tensor q = at::randn({m, d}), p = at::rand({m, n + 3});
            at::Tensor scores = at::zeros({m, n + 3}), mixed = at::full({m, d}, 7.0f);
            kv::dots(q.const_data_ptr<float>(), m, rows.data(), n, shape, scores.data_ptr<float>(), n + 3);
            CHECK(near(scores.narrow(1, 0, n), at::matmul(q.to(at::kDouble), wide.t()), 1e-5, 1e-4));
            CHECK(scores.narrow(1, n, 3).eq(0).all().item<bool>());
            kv::mix(p.const_data_ptr<float>(), n + 3, m, rows.data(), n, shape, mixed.data_ptr<float>());
            CHECK(near(mixed, at::matmul(p.narrow(1, 0, n).to(at::kDouble), wide), 1e-5, 1e-4));
          }
  });
}

TEST_CASE("the transform is what makes 4 bits enough for keys with a large number") {
  at::manual_seed(3);
  const kv::RowShape shape{128, 4};
  at::Tensor keys = at::randn({500, 128});
  keys.select(1, 17).mul_(30);
  const at::Tensor q = at::randn({1, 128});
  at::Tensor turned = q.clone();
  kv::rotate(turned.data_ptr<float>(), 128);
  const at::Tensor exact = at::matmul(keys, q.t());
  const auto off = [&](const at::Tensor& query, bool rotated) {
    return (at::matmul(widened(coded(keys, shape, rotated), shape), query.t()) - exact).norm().item<double>();
  };
  CHECK(off(turned, true) < 0.7 * off(q, false));
}

namespace {

struct Rows {
  at::Tensor k, v;
};
Rows random_rows(int64_t count, int64_t heads, int64_t d, at::ScalarType type) {
  return {at::randn({count, heads, d}).to(type), at::randn({count, heads, d}).to(type)};
}

LayerCache closed(KvFormat format, const Rows& rows) {
  LayerCache cache(format);
  cache.append(rows.k, rows.v);
  cache.close();
  return cache;
}

bool same(const LayerCache& a, const LayerCache& b) {
  return a.length() == b.length() && at::equal(a.stored_keys(), b.stored_keys()) &&
         at::equal(a.stored_values(), b.stored_values());
}

// Calls f with each format and type.
template <class Function>
void on_every_format(Function f) {
  for (const KvFormat format : {KvFormat::int8, KvFormat::int4})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      CAPTURE(static_cast<int>(format));
      CAPTURE(type);
      at::manual_seed(5);
      f(format, type);
    }
}

}  // namespace

TEST_CASE("a cache of codes: however its rows come, it holds the same bytes") {
  on_every_format([](KvFormat format, at::ScalarType type) {
    const Rows rows = random_rows(70, 2, 64, type);
    const auto part = [&](int64_t first, int64_t count) {
      return Rows{rows.k.narrow(0, first, count), rows.v.narrow(0, first, count)};
    };
    const LayerCache all = closed(format, rows);
    CHECK(all.is_coded());
    CHECK(all.bytes() == 2 * 2 * (70 + 64) * LayerCache::row_bytes(format, 64, 4));
    LayerCache parts(format);
    parts.append(part(0, 30).k, part(0, 30).v, 31);
    CHECK_FALSE(parts.is_coded());
    parts.append(part(30, 31).k, part(30, 31).v);
    parts.close();
    for (int64_t i = 61; i < 66; ++i) parts.append(part(i, 1).k, part(i, 1).v);  // as decoding does
    CHECK(parts.is_coded());
    parts.append(part(66, 4).k, part(66, 4).v);  // as behind a cached prefix
    CHECK_FALSE(parts.is_coded());
    parts.close();
    CHECK(same(parts, all));

    // Keys are the given ones within the rounding of their rotated numbers: 8 bits 1 %, 4 bits 15 %.
    const double limit = format == KvFormat::int8 ? 0.01 : 0.15;
    const auto off = [&](const at::Tensor& got, const at::Tensor& given) {
      const at::Tensor wide = given.transpose(0, 1).to(at::kDouble);
      return ((got.to(at::kDouble) - wide).norm() / wide.norm()).item<double>();
    };
    CHECK(off(all.keys(), rows.k) < limit);
    CHECK(off(all.values(), rows.v) < limit);
    CHECK(off(all.keys(), rows.k) > limit / 100);
  });
}

TEST_CASE("a cache of codes: dropping rows and rounding them can change places") {
  on_every_format([](KvFormat format, at::ScalarType type) {
    const Rows rows = random_rows(50, 2, 32, type);
    const at::Tensor index = at::tensor({0, 3, 4, 17, 18, 49}, at::kLong);
    LayerCache later = closed(format, rows);
    later.keep(index);
    const LayerCache before = closed(format, {rows.k.index_select(0, index), rows.v.index_select(0, index)});
    CHECK(same(later, before));
    LayerCache open(format);
    open.append(rows.k, rows.v);
    open.keep(index);
    CHECK(same(open, before));

    LayerCache shorter = before;
    shorter.drop_last(2);
    shorter.append(rows.k.narrow(0, 7, 1), rows.v.narrow(0, 7, 1));
    const at::Tensor now = at::tensor({0, 3, 4, 17, 7}, at::kLong);
    CHECK(same(shorter, closed(format, {rows.k.index_select(0, now), rows.v.index_select(0, now)})));
    CHECK(before.length() == 6);  // a copy

    // Rows before the ones that are dropped keep their codes when they are opened and closed again.
    LayerCache again = before;
    again.append(rows.k.narrow(0, 20, 3), rows.v.narrow(0, 20, 3), 1);
    again.drop_last(2);
    again.append(rows.k.narrow(0, 30, 2), rows.v.narrow(0, 30, 2));
    again.close();
    const at::Tensor then = at::tensor({0, 3, 4, 17, 18, 49, 20, 30, 31}, at::kLong);
    CHECK(same(again, closed(format, {rows.k.index_select(0, then), rows.v.index_select(0, then)})));

    later.keep(at::empty({0}, at::kLong));
    CHECK(later.length() == 0);
    later.append(rows.k.narrow(0, 9, 1), rows.v.narrow(0, 9, 1));
    later.close();
    CHECK(same(later, closed(format, {rows.k.narrow(0, 9, 1), rows.v.narrow(0, 9, 1)})));
  });
}

TEST_CASE("a cache of codes: copies share memory, its first rows and what is restored have their own") {
  on_every_format([](KvFormat format, at::ScalarType type) {
    const Rows rows = random_rows(40, 2, 48, type);
    const LayerCache cache = closed(format, rows);
    LayerCache longer = cache;
    CHECK(longer.stored_keys().const_data_ptr() == cache.stored_keys().const_data_ptr());
    longer.append(rows.k.narrow(0, 0, 1), rows.v.narrow(0, 0, 1));
    CHECK(cache.length() == 40);
    CHECK(same(cache, closed(format, rows)));
    CHECK(at::equal(longer.stored_keys().narrow(1, 0, 40), cache.stored_keys()));
    CHECK(longer.bytes() <= LayerCache::capacity_of(41) * 2 * 2 * LayerCache::row_bytes(format, 48, 4));

    const LayerCache first = cache.first(30);
    CHECK(first.bytes() == 2 * 2 * 30 * LayerCache::row_bytes(format, 48, 4));
    CHECK(same(first, closed(format, {rows.k.narrow(0, 0, 30), rows.v.narrow(0, 0, 30)})));
    const LayerCache back = LayerCache::restored(format, 48, first.stored_keys(), first.stored_values());
    CHECK(same(back, first));
    CHECK(at::equal(back.keys(), first.keys()));
    const KvFormat other = format == KvFormat::int8 ? KvFormat::int4 : KvFormat::int8;
    CHECK_THROWS_AS(LayerCache::restored(other, 48, first.stored_keys(), first.stored_values()), Error);
    CHECK_THROWS_AS(LayerCache::restored(format, 64, first.stored_keys(), first.stored_values()), Error);
    CHECK_THROWS_AS(LayerCache::restored(KvFormat::plain, 48, first.stored_keys(), first.stored_values()),
                    Error);
    CHECK_THROWS_AS(LayerCache::restored(format, 48, first.keys(), first.values()), Error);
  });
}

TEST_CASE("attention on codes is that on what they stand for; a prompt's own rows are not rounded") {
  on_every_target(kv::target_name, [] {
    on_every_format([](KvFormat format, at::ScalarType type) {
      for (const int64_t group : {1, 3, 8, 11})
        for (const int64_t length : {5, 2047, 4500}) {
          CAPTURE(group);
          CAPTURE(length);
          const Rows rows = random_rows(length, 2, 32, type);
          const at::Tensor q = at::randn({length, 2 * group, 32}).to(type);
          const at::Tensor last = q.narrow(0, length - 1, 1);
          const LayerCache cache = closed(format, rows);
          LayerCache wide;  // the same numbers, not in codes
          wide.append(cache.keys().transpose(0, 1), cache.values().transpose(0, 1));
          const double limit = type == at::kFloat ? 1e-5 : 1e-2;
          CHECK(
              near(causal_attention(last, cache), causal_attention(last.to(at::kFloat), wide), limit, limit));
          CHECK((causal_attention(last, cache).scalar_type() == type));
          if (length > 10) continue;
          // Without kernels, and several rows on a closed cache.
          CHECK(near(causal_attention(q, cache), causal_attention(q.to(at::kFloat), wide), 2e-2, 2e-2));
          LayerCache open(format), plain;
          for (LayerCache* each : {&open, &plain}) each->append(rows.k, rows.v);
          CHECK(at::equal(causal_attention(q, open), causal_attention(q, plain)));
          CHECK(at::equal(attention_logits(q[0], open), attention_logits(q[0], plain)));
        }
    });
  });
}

TEST_CASE("what a cache of codes cannot be") {
  const at::Tensor rows = at::randn({3, 2, 24});
  LayerCache cache(KvFormat::int8);
  CHECK_THROWS_WITH_AS(
      cache.append(rows, rows),
      "kv: int8 needs heads of a multiple of 16 numbers, this model's have 24; leave it bf16", Error);
  CHECK_THROWS_WITH_AS(
      check_kv_format(KvFormat::int4, 64, at::Device("cuda:1")),
      "kv: int4 was asked for, which only the CPU has kernels for, but the device is cuda:1; "
      "leave it bf16",
      Error);
  CHECK_NOTHROW(check_kv_format(KvFormat::plain, 24, at::Device("cuda")));
  CHECK(parse_kv_format("int4") == KvFormat::int4);
  CHECK(parse_kv_format("bf16") == KvFormat::plain);
  CHECK_THROWS_WITH_AS(parse_kv_format("int2"), "kv: expected bf16, int8 or int4, got 'int2'", Error);
}
