// Attention over the cache, in segments, and the cache itself, against a naive implementation in double.
#include "glimpse/nn/attention.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "memory.h"
#include "nn/every_target.h"
#include "nn/near.h"

using namespace glimpse;
using test::near;
using test::on_every_target;

namespace {

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape).to(type);
}

// q [T, H, d]; k, v [S, Hkv, d]; row i sees the first S - T + i + 1 keys, or the last `window` of these.
at::Tensor naive(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window = 1 << 20) {
  const int64_t rows = q.size(0), heads = q.size(1), d = q.size(2), length = k.size(0),
                group = heads / k.size(1);
  const at::Tensor wq = q.to(at::kDouble), wk = k.to(at::kDouble), wv = v.to(at::kDouble);
  at::Tensor out = at::zeros({rows, heads, d}, at::kDouble);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t end = length - rows + i + 1, seen = std::min(end, window);
      const at::Tensor keys = wk.narrow(0, end - seen, seen).select(1, h / group);
      const at::Tensor p = (at::mv(keys, wq[i][h]) / std::sqrt(static_cast<double>(d))).softmax(0);
      out[i][h] = at::mv(wv.narrow(0, end - seen, seen).select(1, h / group).t(), p);
    }
  return out.flatten(1);
}

}  // namespace

TEST_CASE("causal_attention: prefill, continuation and decoding") {
  on_every_target(kernels::target_name, [] {
    for (const auto& [type, limit] : {std::pair{at::kFloat, 5e-6}, {at::kBFloat16, 3e-2}})
      for (const int64_t group : {1, 2, 7, 8, 16})
        for (const int64_t d : {16, 32, 64, 80, 128}) {
          CAPTURE(type);
          CAPTURE(group);
          CAPTURE(d);
          at::manual_seed(group * 1000 + d);
          const int64_t kv_heads = group == 1 ? 3 : 2, total = 25;
          const at::Tensor q = random({total, kv_heads * group, d}, type),
                           k = random({total, kv_heads, d}, type), v = random({total, kv_heads, d}, type);
          LayerCache cache;
          int64_t done = 0;
          for (const int64_t count : {11, 1, 6, 1, 1, 5}) {
            const auto part = [&](const at::Tensor& t) { return t.narrow(0, done, count); };
            cache.append(part(k), part(v));
            const at::Tensor expected =
                naive(part(q), k.narrow(0, 0, done + count), v.narrow(0, 0, done + count));
            const at::Tensor got = causal_attention(part(q), cache);
            CHECK(near(got, expected, limit, limit));
            CHECK((got.scalar_type() == type));
            done += count;
          }
        }
  });
}

TEST_CASE("causal_attention: a window slides over prefill, continuation and decoding") {
  const auto at_rows = [](const at::Tensor& t, int64_t first, int64_t count) {
    return t.narrow(0, first, count);
  };
  for (const KvFormat format : {KvFormat::plain, KvFormat::int8})
    for (const int64_t window : {1, 3, 8, 24, 25, 40}) {
      CAPTURE(window);
      at::manual_seed(window);
      const double limit = format == KvFormat::plain ? 5e-6 : 5e-2;
      const at::Tensor q = at::randn({25, 4, 32}), k = at::randn({25, 2, 32}), v = at::randn({25, 2, 32});
      LayerCache cache(format);
      int64_t done = 0;
      for (const int64_t count : {11, 1, 6, 1, 1, 5}) {
        const at::Tensor own = at_rows(q, done, count);
        cache.append(at_rows(k, done, count), at_rows(v, done, count));
        done += count;
        const at::Tensor expected = naive(own, at_rows(k, 0, done), at_rows(v, 0, done), window);
        CHECK(near(causal_attention(own, cache, window), expected, limit, limit));
        cache.close();
        CHECK(near(causal_attention(own, cache, window), expected, limit, limit));
        // With gradients, by libtorch.
        if (format == KvFormat::plain)
          CHECK(near(causal_attention(own.clone().requires_grad_(true), cache, window), expected, limit,
                     limit));
      }
    }
}

TEST_CASE("causal_attention: decoding behind a long cache") {
  on_every_target(kernels::target_name, [] {
    for (const auto& [type, limit] : {std::pair{at::kFloat, 5e-6}, {at::kBFloat16, 3e-2}})
      for (const int64_t length : {2047, 2048, 2049, 4097, 7001}) {
        CAPTURE(length);
        // Scores so large that some parts have all the weight.
        const at::Tensor q = random({1, 6, 16}, type) * 4, k = random({length, 2, 16}, type),
                         v = random({length, 2, 16}, type);
        LayerCache cache;
        cache.append(k, v);
        CHECK(near(causal_attention(q, cache), naive(q, k, v), limit, limit));
      }
  });
}

TEST_CASE("causal_attention of a single first row, and with autograd") {
  const at::Tensor q = random({1, 4, 16}, at::kFloat), k = random({1, 2, 16}, at::kFloat),
                   v = random({1, 2, 16}, at::kFloat);
  LayerCache cache;
  cache.append(k, v);
  CHECK(near(causal_attention(q, cache), naive(q, k, v), 1e-6, 1e-6));
  const at::Tensor more = random({5, 2, 16}, at::kFloat);
  cache.append(more, more);
  const at::Tensor kernel = causal_attention(q, cache);
  CHECK(near(causal_attention(q.clone().requires_grad_(true), cache), kernel, 1e-6, 1e-6));
}

TEST_CASE("attention_logits") {
  on_every_target(kernels::target_name, [] {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor q = random({6, 16}, type), k = random({9, 2, 16}, type);
      LayerCache cache;
      cache.append(k, k);
      const at::Tensor got = attention_logits(q, cache);
      CHECK((got.scalar_type() == at::kFloat));
      at::Tensor expected = at::zeros({6, 9}, at::kDouble);
      for (int64_t h = 0; h < 6; ++h)
        for (int64_t s = 0; s < 9; ++s)
          expected[h][s] = (q[h].to(at::kDouble) * k[s][h / 3].to(at::kDouble)).sum() / 4.0;
      CHECK(near(got, expected, 1e-5, 1e-5));
    }
  });
}

TEST_CASE("segment_attention with mixed lengths") {
  on_every_target(kernels::target_name, [] {
    for (const auto& [type, limit] : {std::pair{at::kFloat, 5e-6}, {at::kBFloat16, 3e-2}})
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1}, {17}, {4, 4, 4}, {16, 8, 16, 4, 8, 1, 16}, {1, 2, 3}}) {
        int64_t total = 0;
        for (const int64_t n : lengths) total += n;
        const at::Tensor q = random({total, 3, 16}, type), k = random({total, 3, 16}, type),
                         v = random({total, 3, 16}, type);
        at::Tensor expected = at::zeros({total, 48}, at::kDouble);
        int64_t first = 0;
        for (const int64_t n : lengths) {
          const auto heads = [&](const at::Tensor& t) {
            return t.narrow(0, first, n).transpose(0, 1).to(at::kDouble);
          };
          const at::Tensor p = (at::matmul(heads(q), heads(k).transpose(1, 2)) / 4.0).softmax(2);
          expected.narrow(0, first, n).copy_(at::matmul(p, heads(v)).transpose(0, 1).flatten(1));
          first += n;
        }
        CHECK(near(segment_attention(q, k, v, lengths), expected, limit, limit));
      }
  });
}

TEST_CASE("the cache appends, keeps and drops rows") {
  const at::Tensor k = at::arange(0, 200 * 2 * 4, at::kFloat).view({200, 2, 4}), v = -k;
  LayerCache cache;
  CHECK(cache.bytes() == 0);
  CHECK(cache.length() == 0);
  int64_t rows = 0;
  for (const int64_t count : {1, 2, 60, 1, 100, 36}) {
    cache.append(k.narrow(0, rows, count), v.narrow(0, rows, count));
    rows += count;
    CHECK(cache.length() == rows);
    CHECK(near(cache.keys(), k.narrow(0, 0, rows).transpose(0, 1), 0, 0));
    CHECK(near(cache.values(), v.narrow(0, 0, rows).transpose(0, 1), 0, 0));
  }
  const size_t row_bytes = 2 * 2 * 4 * sizeof(float);
  CHECK(cache.bytes() >= 200 * row_bytes);
  CHECK(cache.bytes() <= 400 * row_bytes);

  const at::Tensor index = at::tensor({0, 3, 4, 199}, at::kLong);
  cache.keep(index);
  CHECK(cache.length() == 4);
  CHECK(near(cache.keys(), k.index_select(0, index).transpose(0, 1), 0, 0));
  CHECK(near(cache.values(), v.index_select(0, index).transpose(0, 1), 0, 0));
  CHECK(cache.bytes() <= 4 * row_bytes + 64 * row_bytes);  // the rest is freed, up to room for new rows

  cache.drop_last(1);
  CHECK(cache.length() == 3);
  cache.append(k.narrow(0, 50, 2), v.narrow(0, 50, 2));
  const at::Tensor now = at::tensor({0, 3, 4, 50, 51}, at::kLong);
  CHECK(near(cache.keys(), k.index_select(0, now).transpose(0, 1), 0, 0));

  cache.keep(at::empty({0}, at::kLong));
  CHECK(cache.length() == 0);
  CHECK(cache.keys().size(1) == 0);
  cache.append(k.narrow(0, 7, 1), v.narrow(0, 7, 1));
  CHECK(near(cache.values(), v.narrow(0, 7, 1).transpose(0, 1), 0, 0));

  KvCache all(3);
  CHECK(all.bytes() == 0);
  all.layers[1] = cache;
  CHECK(all.bytes() == cache.bytes());
}

TEST_CASE("kept rows do not hold the old memory") {
  LayerCache cache;
  const at::Tensor k = at::randn({1000, 1, 8});
  cache.append(k, k);
  cache.keep(at::arange(10, at::kLong));
  CHECK(cache.keys().storage().nbytes() + cache.values().storage().nbytes() == cache.bytes());
  CHECK(cache.bytes() < 2 * 100 * 8 * sizeof(float));
}

TEST_CASE("attention received inside segments") {
  on_every_target(kernels::target_name, [] {
    at::manual_seed(4);
    const at::Tensor q = at::randn({300, 3, 8}), k = at::randn({300, 3, 8});
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{300}, {1, 99, 200}}) {
      const at::Tensor got = received_attention(q, k, lengths);
      int64_t first = 0;
      for (const int64_t length : lengths) {
        const auto part = [&](const at::Tensor& t) { return t.narrow(0, first, length).transpose(0, 1); };
        const at::Tensor weights = (at::matmul(part(q), part(k).transpose(1, 2)) / std::sqrt(8.0)).softmax(2);
        CHECK((got.narrow(0, first, length) - weights.mean(0).mean(0)).abs().max().item<float>() < 1e-6);
        first += length;
      }
    }
    const at::Tensor wide = at::randn({300, 6, 8});  // other heads' numbers between a row's own
    CHECK(at::equal(
        received_attention(wide.narrow(1, 0, 3), wide.narrow(1, 3, 3), {300}),
        received_attention(wide.narrow(1, 0, 3).contiguous(), wide.narrow(1, 3, 3).contiguous(), {300})));
    const at::Tensor low = received_attention(q.to(at::kBFloat16), k.to(at::kBFloat16), {300});
    CHECK((low.scalar_type() == at::kFloat));
    CHECK(low.sum().item<float>() == doctest::Approx(1));
  });
}

TEST_CASE("attention received by many rows takes little memory" * doctest::skip(!test::kMeasuresMemory)) {
  // The weights of all heads would take 1 GiB, queries and keys of all heads in float32 40 MiB.
  constexpr int64_t rows = 4096, heads = 16, width = 80;
  const at::Tensor q = at::randn({rows, heads, width}, at::kBFloat16),
                   k = at::randn({rows, heads, width}, at::kBFloat16);
  received_attention(q.narrow(0, 0, 64), k.narrow(0, 0, 64), {64});  // what is set up once
  at::Tensor received;
  CHECK(test::grown_mib([&] { received = received_attention(q, k, {rows}); }) <
        12 + 12 * at::get_num_threads());
  CHECK(received.sum().item<float>() == doctest::Approx(1));
}
