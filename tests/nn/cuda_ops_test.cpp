// Our CUDA kernels against libtorch's operations on the same device. Without a CUDA device there is nothing
// to run.
#include "glimpse/nn/cuda_ops.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>

#include "glimpse/nn/attention.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/ops.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

namespace {

const bool kNoDevice = !at::hasCUDA();

// Calls f(options, limit): limit is the largest relative L2 distance.
template <class Function>
void each_type(Function f) {
  at::globalContext().setFloat32MatmulPrecision("highest");
  for (const auto& [type, limit] : {std::pair{at::kFloat, 2e-6}, {at::kBFloat16, 6e-3}}) {
    INFO(at::toString(type));
    f(at::TensorOptions(type).device(at::kCUDA), limit);
  }
}

template <class Function>
at::Tensor plainly(Function f) {
  cuda::use_kernels(false);
  const at::Tensor out = f();
  cuda::use_kernels(true);
  return out;
}

void compare(const at::Tensor& got, const at::Tensor& expected, double limit) {
  REQUIRE(got.sizes() == expected.sizes());
  const at::Tensor a = got.to(at::kDouble), b = expected.to(at::kDouble);
  const double off = ((a - b).norm() / b.norm().clamp_min(1e-30)).item<double>();
  CHECK_MESSAGE(off <= limit,
                "relative distance " << off << ", limit " << limit << ", shape " << got.sizes());
}

}  // namespace

TEST_CASE("norms" * doctest::skip(kNoDevice)) {
  each_type([](at::TensorOptions options, double limit) {
    for (const int64_t rows : {1, 3, 700})
      for (const int64_t n : {8, 20, 64, 1280, 3584, 5120}) {
        const at::Tensor x = at::randn({rows, n}, options), delta = at::randn({rows, n}, options),
                         w = at::randn({n}, options);
        compare(rms_norm(x, w, 1e-6), plainly([&] { return rms_norm(x, w, 1e-6); }), limit);
        at::Tensor own = x.clone(), other = x.clone();
        const at::Tensor got = add_rms_norm(own, delta, w, 1e-6);
        compare(got, plainly([&] { return add_rms_norm(other, delta, w, 1e-6); }), limit);
        compare(own, other, limit);
      }
  });
}

TEST_CASE("silu times up, rotation" * doctest::skip(kNoDevice)) {
  each_type([](at::TensorOptions options, double limit) {
    for (const int64_t rows : {1, 5, 300}) {
      const at::Tensor gate = at::randn({rows, 1003}, options), up = at::randn({rows, 1003}, options);
      compare(silu_mul(gate, up), plainly([&] { return silu_mul(gate, up); }), limit);
      for (const int64_t d : {16, 80, 128}) {
        const at::Tensor x = at::randn({rows, 7, d}, options),
                         angles = at::rand({rows, d / 2}, options.dtype(at::kFloat)) * 6;
        const Rope rope = rope_from_angles(angles);
        compare(apply_rope(x.clone(), rope), plainly([&] { return apply_rope(x.clone(), rope); }), limit);
      }
    }
  });
}

TEST_CASE("products of few rows" * doctest::skip(kNoDevice)) {
  each_type([](at::TensorOptions options, double limit) {
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9})
      for (const auto& [k, n] : {std::pair{64, 24}, {3584, 512}, {1024, 9000}, {18944, 3584}}) {
        const auto linear = [&, k = k](int64_t width, bool bias) {
          return Linear{at::randn({width, k}, options), bias ? at::randn({width}, options) : at::Tensor()};
        };
        const at::Tensor x = at::randn({m, k}, options);
        const Linear a = linear(n, true), b = linear(40, false), c = linear(n + 1, true);
        const auto [one, two, three] = linears(x, a, b, c);
        compare(one, plainly([&] { return a(x); }), 4 * limit);
        compare(two, plainly([&] { return b(x); }), 4 * limit);
        compare(three, plainly([&] { return c(x); }), 4 * limit);
      }
  });
}

TEST_CASE("a decoding step over caches of different lengths" * doctest::skip(kNoDevice)) {
  each_type([](at::TensorOptions options, double limit) {
    struct Shape {
      int64_t heads, kv_heads, d;
    };
    for (const Shape& s : {Shape{28, 4, 128}, {16, 2, 128}, {8, 8, 64}, {4, 2, 16}, {12, 1, 80}, {2, 2, 256}})
      for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1}, {5000}, {3, 700, 64, 65, 2049}}) {
        INFO(s.heads << " " << s.kv_heads << " " << s.d << " " << lengths.size());
        const auto count = std::ssize(lengths);
        std::vector<KvCache> caches(lengths.size()), copies;
        for (size_t i = 0; i < lengths.size(); ++i) {
          caches[i] = KvCache(2);
          for (LayerCache& layer : caches[i].layers)
            layer.append(at::randn({lengths[i], s.kv_heads, s.d}, options),
                         at::randn({lengths[i], s.kv_heads, s.d}, options));
        }
        copies = caches;
        const at::Tensor q = at::randn({count, s.heads, s.d}, options),
                         k = at::randn({count, s.kv_heads, s.d}, options),
                         v = at::randn({count, s.kv_heads, s.d}, options);
        const Rope rope = rope_from_angles(at::rand({count, s.d / 2}, options.dtype(at::kFloat)) * 6);
        std::vector<KvCache*> pointers;
        for (KvCache& cache : caches) pointers.push_back(&cache);
        REQUIRE(cuda::DecodeTable::possible(caches[0]));
        cuda::DecodeTable table = cuda::DecodeTable::reserve(pointers);
        table.entries = table.entries.to(at::kCUDA);
        for (int64_t l = 0; l < 2; ++l) {
          const at::Tensor got = cuda::decode_attention(q.clone(), k, v, rope, table, l);
          const at::Tensor expected = plainly([&] {
            std::vector<at::Tensor> rows;
            const at::Tensor turned = apply_rope(q.clone(), rope), keys = apply_rope(k.clone(), rope);
            for (int64_t i = 0; i < count; ++i) {
              LayerCache& cache = copies[i].layers[l];
              cache.append(keys.narrow(0, i, 1), v.narrow(0, i, 1));
              const at::Tensor wide_k = cache.keys().to(at::kFloat), wide_v = cache.values().to(at::kFloat);
              const at::Tensor scores = attention_logits(turned[i], cache);
              const at::Tensor p = scores.softmax(1).view({s.kv_heads, -1, cache.length()});
              rows.push_back(at::matmul(p, wide_v).view({1, -1}));
              compare(caches[i].layers[l].keys(), cache.keys(), limit);
              compare(caches[i].layers[l].values(), cache.values(), 0);
            }
            return at::cat(rows);
          });
          compare(got, expected, 2 * limit);
        }
      }
  });
}

TEST_CASE("flash attention: prompts, continued prompts, segments" * doctest::skip(kNoDevice)) {
  const at::NoGradGuard no_grad;
  each_type([](at::TensorOptions options, double limit) {
    for (const auto& [rows, before] : {std::pair{70, 0}, {33, 500}, {1, 90}, {260, 3}}) {
      LayerCache cache;
      const int64_t heads = 8, kv_heads = 2, d = 64;
      cache.append(at::randn({rows + before, kv_heads, d}, options),
                   at::randn({rows + before, kv_heads, d}, options));
      const at::Tensor q = at::randn({rows, heads, d}, options);
      const at::Tensor got = causal_attention(q, cache);
      const at::Tensor k = cache.keys().to(at::kDouble).repeat_interleave(heads / kv_heads, 0),
                       v = cache.values().to(at::kDouble).repeat_interleave(heads / kv_heads, 0);
      const at::Tensor mask = at::ones({rows, rows + before}, q.options().dtype(at::kBool)).tril(before);
      const at::Tensor scores = at::matmul(q.to(at::kDouble).transpose(0, 1), k.transpose(1, 2)) / 8.0;
      const at::Tensor p = scores.masked_fill(mask.logical_not(), -1e30).softmax(2);
      compare(got, at::matmul(p, v).transpose(0, 1).reshape({rows, -1}), 2 * limit + 2e-6);
    }
    const std::vector<int64_t> lengths = {16, 64, 5, 64};
    const at::Tensor q = at::randn({149, 4, 80}, options), k = at::randn({149, 4, 80}, options),
                     v = at::randn({149, 4, 80}, options);
    for (const bool causal : {false, true}) {
      const at::Tensor got = segment_attention(q, k, v, lengths, causal);
      int64_t first = 0;
      for (const int64_t length : lengths) {
        const auto part = [&](const at::Tensor& t) {
          return t.narrow(0, first, length).to(at::kDouble).transpose(0, 1);
        };
        at::Tensor scores = at::matmul(part(q), part(k).transpose(1, 2)) / std::sqrt(80.0);
        if (causal)
          scores = scores.masked_fill(
              at::ones({length, length}, q.options().dtype(at::kBool)).tril().logical_not(), -1e30);
        compare(got.narrow(0, first, length),
                at::matmul(scores.softmax(2), part(v)).transpose(0, 1).reshape({length, -1}),
                2 * limit + 2e-6);
        first += length;
      }
    }
  });
}
