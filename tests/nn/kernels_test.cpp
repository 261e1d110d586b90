// Every kernel on every instruction set of this machine, against scalar or ATen arithmetic in double.
#include "glimpse/nn/kernels.h"

#include <bit>
#include <cmath>

#include "nn/every_target.h"
#include "nn/near.h"

using namespace glimpse;
using test::near;

namespace {

template <class Body>
void on_every_target(Body body) {
  test::on_every_target(kernels::target_name, body);
}

// Values at an odd address with guards around them.
struct Guarded {
  at::Tensor whole, view;
  explicit Guarded(const at::Tensor& values) {
    whole = at::full({values.numel() + 40}, 768, values.options());
    view = whole.narrow(0, 3, values.numel()).view(values.sizes());
    view.copy_(values);
  }
  template <class T>
  T* data() const {
    return static_cast<T*>(view.data_ptr());
  }
  bool intact() const {
    const int64_t end = 3 + view.numel();
    return (whole.narrow(0, 0, 3) == 768).all().item<bool>() &&
           (whole.narrow(0, end, whole.numel() - end) == 768).all().item<bool>();
  }
};

template <class T>
constexpr at::ScalarType type_of = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;
// One rounding of the result (bf16: half of 2^-7, and a rounding before it).
template <class T>
constexpr double rounding = std::is_same_v<T, float> ? 2e-6 : 8e-3;

template <class T>
Guarded random(at::IntArrayRef shape, double scale = 1) {
  return Guarded((at::randn(shape) * scale).to(type_of<T>));
}
at::Tensor wide(const at::Tensor& x) {
  return x.to(at::kDouble);
}

const std::vector<int64_t> kSizes = {0,  1,  2,  3,  4,  5,  7,   8,   9,   15,   16,
                                     17, 31, 32, 33, 63, 65, 100, 128, 257, 1000, 3001};

template <class X, class T>
void test_dots() {
  for (const int64_t k : kSizes)
    for (int64_t m = 1; m <= kernels::max_rows; ++m) {
      CAPTURE(k);
      CAPTURE(m);
      const int64_t rows = 11, begin = m % 3, end = rows - m % 2, ldx = k + m % 4, ldy = rows + 2;
      const Guarded x = random<X>({m, ldx}), w = random<T>({rows, k});
      const Guarded y(at::full({m, ldy}, -5, at::kFloat));
      kernels::dots(x.data<X>(), ldx, m, k, w.data<T>(), begin, end, y.data<float>(), ldy);
      at::Tensor expected = at::full({m, ldy}, -5, at::kDouble);  // nothing outside [begin, end) is written
      expected.narrow(1, begin, end - begin)
          .copy_(at::matmul(wide(x.view.narrow(1, 0, k)), wide(w.view).t()).narrow(1, begin, end - begin));
      CHECK(near(y.view, expected, 1e-5, 2e-6 * std::sqrt(static_cast<double>(k + 1))));
      CHECK((y.intact() && x.intact() && w.intact()));
    }
}

template <class T>
void test_mix() {
  for (const int64_t d : kSizes)
    for (int64_t m = 1; m <= kernels::max_rows; ++m)
      for (const int64_t n : {0, 1, 2, 37}) {
        CAPTURE(d);
        CAPTURE(m);
        CAPTURE(n);
        const int64_t ldp = n + 3;
        const Guarded p = random<float>({m, ldp}), v = random<T>({n, d});
        const Guarded y(at::full({m, d}, -5, at::kFloat));
        kernels::mix(p.data<float>(), ldp, m, n, v.data<T>(), d, y.data<float>());
        CHECK(near(y.view, at::matmul(wide(p.view.narrow(1, 0, n)), wide(v.view)), 1e-5, 2e-5));
        CHECK(y.intact());
      }
}

template <class T>
void test_rms_norm() {
  for (const int64_t n : kSizes)
    for (const bool with_delta : {false, true})
      for (const double scale : {1e-4, 1.0, 1e4}) {
        if (n == 0) continue;  // the mean of nothing
        CAPTURE(n);
        CAPTURE(with_delta);
        CAPTURE(scale);
        const Guarded x = random<T>({n}, scale), delta = random<T>({n}, scale), w = random<T>({n});
        const Guarded out(at::zeros({n}, type_of<T>));
        const at::Tensor before = x.view.clone();
        const at::Tensor sum =
            with_delta ? wide((wide(before) + wide(delta.view)).to(type_of<T>)) : wide(before);
        kernels::rms_norm(x.data<T>(), with_delta ? delta.data<T>() : nullptr, w.data<T>(), 1e-6f, n,
                          out.data<T>());
        CHECK(near(x.view, sum, 0, 0));  // the residual is rounded once, exactly
        const at::Tensor normed = (sum / at::sqrt(sum.square().mean() + 1e-6)).to(type_of<T>);
        CHECK(near(out.view, wide(normed) * wide(w.view), 2 * rounding<T>, 1e-6));
        CHECK((out.intact() && x.intact()));
      }
}

template <class T>
void test_silu_mul() {
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const Guarded gate = random<T>({n}, 10), up = random<T>({n}), out(at::zeros({n}, type_of<T>));
    // The ends of exp's range and beyond, in vector and tail lanes.
    const std::vector<double> hard = {-1e30, -1000, -130, -105, -103, -89, -87, 89, 105, 1000, 1e30, 0};
    for (int64_t i = 0; i < n; i += 2) gate.view[i] = hard[(i / 2) % hard.size()];
    kernels::silu_mul(gate.data<T>(), up.data<T>(), out.data<T>(), n);
    const at::Tensor g = wide(gate.view);
    CHECK(near(out.view, g * g.sigmoid() * wide(up.view), rounding<T>, 1e-6));
    CHECK(out.intact());
  }
}

template <class T>
void test_rotate() {
  for (const int64_t half : kSizes) {
    CAPTURE(half);
    const Guarded x = random<T>({2, half}), angle = random<float>({half}, 100);
    const Guarded cos(angle.view.cos()), sin(angle.view.sin());
    const at::Tensor a = wide(x.view[0]), b = wide(x.view[1]), c = wide(cos.view), s = wide(sin.view);
    kernels::rotate(x.data<T>(), cos.data<float>(), sin.data<float>(), half);
    CHECK(near(x.view, at::stack({a * c - b * s, b * c + a * s}), rounding<T>, 1e-6));
    CHECK(x.intact());
  }
}

}  // namespace

TEST_CASE("add_bias: rounds to nearest even like ATen, infinities and NaN included") {
  std::vector<float> from;
  for (uint32_t high = 0; high < 65536; ++high)
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
      from.push_back(std::bit_cast<float>(high << 16 | low));
  from.resize(from.size() + 5, 1.5f);
  on_every_target([&] {
    std::vector<uint16_t> to(from.size(), 1);
    kernels::add_bias(from.data(), nullptr, static_cast<int64_t>(from.size()), to.data());
    size_t wrong = 0;
    for (size_t i = 0; i < from.size(); ++i)
      wrong += std::isnan(from[i])
                   ? !std::isnan(static_cast<float>(c10::BFloat16(to[i], c10::BFloat16::from_bits())))
                   : to[i] != c10::BFloat16(from[i]).x;
    CHECK(wrong == 0);
  });
}

template <class T>
void test_add_bias() {
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const Guarded x = random<float>({n}), bias = random<T>({n}), y(at::zeros_like(bias.view));
    kernels::add_bias(x.data<float>(), bias.data<T>(), n, y.data<T>());
    CHECK(near(y.view, (x.view + bias.view.to(at::kFloat)).to(y.view.scalar_type()), 0, 0));
    CHECK(y.intact());
  }
}

TEST_CASE("add_bias: any length, nothing beyond it") {
  on_every_target([] {
    test_add_bias<float>();
    test_add_bias<kernels::bf16>();
  });
}

TEST_CASE("dots") {
  on_every_target([] {
    test_dots<float, float>();
    test_dots<float, kernels::bf16>();
    if (test::can_pair()) test_dots<kernels::bf16, kernels::bf16>();
  });
}

TEST_CASE("mix") {
  on_every_target([] {
    test_mix<float>();
    test_mix<kernels::bf16>();
  });
}

TEST_CASE("rms_norm of a row") {
  on_every_target([] {
    test_rms_norm<float>();
    test_rms_norm<kernels::bf16>();
  });
}

TEST_CASE("silu_mul of a row") {
  on_every_target([] {
    test_silu_mul<float>();
    test_silu_mul<kernels::bf16>();
  });
}

TEST_CASE("rotate") {
  on_every_target([] {
    test_rotate<float>();
    test_rotate<kernels::bf16>();
  });
}

TEST_CASE("softmax of a row with NaN is NaN, with minus infinity is not") {
  on_every_target([] {
    std::vector<float> x(50, 1.0f), y = x;
    x[20] = NAN;
    y[20] = -INFINITY;
    kernels::softmax(x.data(), 50);
    kernels::softmax(y.data(), 50);
    for (int i = 0; i < 50; ++i) {
      CHECK(std::isnan(x[i]));
      CHECK(y[i] == doctest::Approx(i == 20 ? 0 : 1.0 / 49));
    }
  });
}

TEST_CASE("softmax of a row") {
  on_every_target([] {
    for (const int64_t n : kSizes)
      for (const double scale : {1e-3, 1.0, 300.0}) {
        CAPTURE(n);
        const Guarded x = random<float>({n}, scale);
        if (n > 4) x.view[n / 2] = -INFINITY;
        const at::Tensor expected = wide(x.view).softmax(0);
        const double sum = wide(x.view).logsumexp(0).item<double>();
        const double got = kernels::softmax(x.data<float>(), n);
        CHECK((n == 0 ? std::isinf(got) : got == doctest::Approx(sum).epsilon(1e-5)));
        CHECK(near(x.view, expected, 1e-5, 1e-7));
        CHECK(x.intact());
      }
  });
}
