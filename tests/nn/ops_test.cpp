// The operations over tensors against their formulas in double, and with autograd against without.
#include "glimpse/nn/ops.h"

#include <cmath>

#include "glimpse/nn/linear.h"
#include "glimpse/nn/rotary.h"
#include "nn/every_target.h"
#include "nn/near.h"
#include "nn/random_sizes.h"

using namespace glimpse;
using test::near;

namespace {

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape).to(type);
}
at::Tensor wide(const at::Tensor& x) {
  return x.detach().to(at::kDouble);
}

// Calls `body(type, relative)` for both types that have kernels.
template <class Body>
void for_types(Body body) {
  for (const auto& [type, relative] : {std::pair{at::kFloat, 4e-6}, {at::kBFloat16, 1.6e-2}}) {
    CAPTURE(type);
    at::manual_seed(3);
    body(type, relative);
  }
}

at::Tensor norm_formula(const at::Tensor& x, const at::Tensor& w) {
  return wide(x) / at::sqrt(wide(x).square().mean(-1, true) + 1e-6) * wide(w);
}

}  // namespace

TEST_CASE("rms_norm and add_rms_norm") {
  for_types([](at::ScalarType type, double relative) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1, 7}, {0, 16}, {3, 5, 33}, {40, 2048}}) {
      const at::Tensor x = random(shape, type), delta = random(shape, type), w = random({shape.back()}, type);
      CHECK(near(rms_norm(x, w, 1e-6), norm_formula(x, w), relative, 1e-5));
      CHECK(near(rms_norm(x.requires_grad_(true), w, 1e-6), norm_formula(x, w), relative, 1e-5));

      const at::Tensor sum = x.detach() + delta;
      at::Tensor in_place = x.detach().clone(), recorded = x.detach().clone().requires_grad_(true);
      const void* place = in_place.data_ptr();
      const at::Tensor kernel = add_rms_norm(in_place, delta, w, 1e-6),
                       graph = add_rms_norm(recorded, delta, w, 1e-6);
      CHECK(in_place.data_ptr() == place);
      CHECK(near(in_place, sum, 0, 0));
      CHECK(near(recorded, sum, 0, 0));
      CHECK(near(kernel, norm_formula(sum, w), relative, 1e-5));
      CHECK(near(graph, kernel, relative, 1e-5));
      CHECK(graph.requires_grad());
    }
  });
}

TEST_CASE("rms_norm takes views") {
  const at::Tensor x = random({12, 9}, at::kFloat), w = random({12}, at::kFloat);
  const at::Tensor before = x.clone();
  CHECK(near(rms_norm(x.t(), w, 1e-6), norm_formula(x.t(), w), 4e-6, 1e-5));
  CHECK(near(x, before, 0, 0));
  at::Tensor view = x.t();
  CHECK(near(add_rms_norm(view, random({9, 12}, at::kFloat) * 0, w, 1e-6), norm_formula(before.t(), w), 4e-6,
             1e-5));
}

TEST_CASE("silu_mul") {
  for_types([](at::ScalarType type, double relative) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1}, {0, 4}, {3, 77}, {20, 4096}}) {
      const at::Tensor gate = random(shape, type), up = random(shape, type);
      const at::Tensor expected = wide(gate) * wide(gate).sigmoid() * wide(up);
      CHECK(near(silu_mul(gate, up), expected, relative, 1e-6));
      CHECK(near(silu_mul(gate.clone().requires_grad_(true), up), expected, 2 * relative, 1e-6));
    }
    const at::Tensor both = random({6, 20}, type);  // halves of one projection are not contiguous
    const at::Tensor gate = both.narrow(1, 0, 10), up = both.narrow(1, 10, 10);
    CHECK(near(silu_mul(gate, up), wide(gate) * wide(gate).sigmoid() * wide(up), relative, 1e-6));
  });
}

TEST_CASE("dropout") {
  const at::Tensor x = at::rand({999, 301}).add_(1).requires_grad_();
  for (const double p : {0.0, 0.05, 0.5}) {
    CAPTURE(p);
    at::manual_seed(5);
    const at::Tensor once = dropout(x, p), other = dropout(x, p);
    at::manual_seed(5);
    CHECK(at::equal(once, dropout(x, p)));
    CHECK(at::equal(once, other) == (p == 0));
    const at::Tensor gone = once.detach().eq(0).to(at::kDouble);
    CHECK(gone.mean().item<double>() == doctest::Approx(p).epsilon(0.02));
    CHECK(near(once, wide(x) * (1 - gone) / (1 - p), 1e-6, 0));
    // Neighbours, in a row and across rows, leave independently of each other.
    for (const int64_t dim : {0, 1}) {
      const int64_t pairs = gone.size(dim) - 1;
      const at::Tensor both = gone.narrow(dim, 0, pairs) * gone.narrow(dim, 1, pairs);
      CHECK(std::abs(both.mean().item<double>() - p * p) < 0.005);
    }
    x.mutable_grad() = at::Tensor();
    once.sum().backward();
    CHECK(near(x.grad(), (1 - gone) / (1 - p), 1e-6, 0));
  }
  CHECK(dropout(at::ones({0, 4}), 0.5).numel() == 0);
  CHECK(dropout(at::ones({3}), 0.5).numel() == 3);
}

TEST_CASE("apply_rope") {
  for_types([](at::ScalarType type, double relative) {
    for (const int64_t tokens : {0, 1, 5, 300})
      for (const int64_t half : {1, 8, 20, 64}) {
        const at::Tensor x = random({tokens, 3, 2 * half}, type);
        const Rope rope = rope_from_angles(at::randn({tokens, half}) * 50);
        const at::Tensor a = wide(x).narrow(2, 0, half), b = wide(x).narrow(2, half, half);
        const at::Tensor c = wide(rope.cos).unsqueeze(1), s = wide(rope.sin).unsqueeze(1);
        const at::Tensor expected = at::cat({a * c - b * s, b * c + a * s}, 2);
        CHECK(near(apply_rope(x.clone().requires_grad_(true), rope), expected, relative, 1e-6));
        CHECK(near(
            apply_rope(x.clone().transpose(0, 1).clone(at::MemoryFormat::Contiguous).transpose(0, 1), rope),
            expected, relative, 1e-6));
        CHECK(near(apply_rope(x, rope), expected, relative, 1e-6));
        CHECK(near(x, expected, relative, 1e-6));  // in place
        const at::Tensor some = at::tensor({4, 0, 4}, at::kLong);
        if (tokens > 4) CHECK(near(rope.rows(some).cos, rope.cos.index_select(0, some), 0, 0));
      }
  });
}

TEST_CASE("inverse_frequencies") {
  const at::Tensor got = inverse_frequencies(12, 10000.0);
  REQUIRE(got.numel() == 6);
  for (int t = 0; t < 6; ++t)
    CHECK(got[t].item<double>() == doctest::Approx(std::pow(10000.0, -2.0 * t / 12)));
}

TEST_CASE("linear: few rows, many rows, panels") {
  for_types([](at::ScalarType type, double relative) {
    const std::vector<std::array<int64_t, 2>> weights = {{1, 1}, {3, 5}, {64, 33}, {130, 257}, {300, 8200}};
    for (const auto& [out, in] : weights)
      for (const int64_t rows : {0, 1, 2, 8, 9, 31, 150})
        for (const bool bias : {false, true}) {
          CAPTURE(out);
          CAPTURE(in);
          CAPTURE(rows);
          CAPTURE(bias);
          const Linear linear{random({out, in}, type), bias ? random({out}, type) : at::Tensor()};
          const at::Tensor x = random({rows, in}, type);
          const at::Tensor expected =
              at::linear(wide(x), wide(linear.weight), bias ? wide(linear.bias) : at::Tensor());
          // Eight lanes (AVX2) sum more numbers each than sixteen, libtorch's products as ours.
          const double absolute = (type == at::kFloat ? 4e-6 : 2e-3) * std::sqrt(static_cast<double>(in));
          for (const GemmPath path : {GemmPath::native, GemmPath::widened, GemmPath::paired}) {
            if (path == GemmPath::paired && !test::can_pair()) continue;
            force_bf16_gemm_path(path);
            CHECK(near(linear(x), expected, relative, absolute));
          }
          force_bf16_gemm_path(std::nullopt);
          CHECK((linear(x).scalar_type() == type));
          // Autograd goes the other way, which is also the native one.
          if (in < 8200) CHECK(near(linear(x.requires_grad_(true)), expected, relative, absolute));
        }
  });
}

TEST_CASE("linear: bf16 panels on every instruction set") {
  test::on_every_target(kernels::target_name, [] {
    std::vector<std::array<int64_t, 3>> shapes = {{9, 1, 1}, {33, 130, 7}, {70, 515, 250}};
    test::RandomSizes size(12);
    for (int i = 0; i < 24; ++i) shapes.push_back({size(80), size(600), size(300)});
    for (const auto& [rows, in, out] : shapes) {
      CAPTURE(rows);
      CAPTURE(in);
      CAPTURE(out);
      const Linear linear{random({out, in}, at::kBFloat16), random({out}, at::kBFloat16)};
      const at::Tensor x = random({rows, in}, at::kBFloat16);
      const at::Tensor expected = at::linear(wide(x), wide(linear.weight), wide(linear.bias));
      for (const GemmPath path : {GemmPath::widened, GemmPath::paired}) {
        if (path == GemmPath::paired && !test::can_pair()) continue;
        force_bf16_gemm_path(path);
        CHECK(near(linear(x), expected, 1e-2, 1e-2));
      }
      force_bf16_gemm_path(std::nullopt);
    }
  });
}

TEST_CASE("several layers of one x give what each gives alone") {
  for_types([](at::ScalarType type, double) {
    const auto low_bit = [&](int64_t out, int64_t group) {
      return Linear{{},
                    random({out}, type),
                    nullptr,
                    std::make_shared<LowBitWeight>(quantise_weight(at::randn({out, 70}), group))};
    };
    const Linear a{random({40, 70}, type), random({40}, type)}, b{random({300, 70}, type), {}},
        eight = low_bit(33, 0), four = low_bit(50, 32), turned{random({70, 40}, type).t(), {}};
    for (const int64_t rows : {1, 8, 50}) {
      const at::Tensor x = random({rows, 70}, type);
      const auto check_all = [&](const auto&... layers) {
        const auto together = linears(x, layers...);
        const std::vector<at::Tensor> alone = {layers(x)...};
        for (size_t i = 0; i < alone.size(); ++i) CHECK(at::equal(together[i], alone[i]));
      };
      check_all(a, b, a);
      check_all(eight, four);
      check_all(a, four, turned);
    }
  });
}

TEST_CASE("linear takes any leading dimensions and views") {
  for_types([](at::ScalarType type, double relative) {
    const Linear linear{random({6, 10}, type), random({6}, type)};
    for (const int64_t n : {1, 4, 30}) {
      const at::Tensor x = random({n, 2, 10}, type), view = random({n, 10, 2}, type).transpose(1, 2);
      CHECK(near(linear(x), at::linear(wide(x), wide(linear.weight), wide(linear.bias)), relative, 1e-2));
      CHECK(
          near(linear(view), at::linear(wide(view), wide(linear.weight), wide(linear.bias)), relative, 1e-2));
    }
    const Linear turned{random({10, 6}, type).t(), {}};
    const at::Tensor x = random({3, 10}, type);
    CHECK(near(turned(x), at::matmul(wide(x), wide(turned.weight).t()), relative, 1e-2));
  });
}
