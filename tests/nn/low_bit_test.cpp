// Weights of 8 and 4 bits against ATen arithmetic in double on what their rounding left.
#define HWY_WANT_AVX3_DL 1
#include "glimpse/nn/low_bit.h"

#include "glimpse/base/check.h"
#include "glimpse/nn/low_bit_kernels.h"
#include "nn/every_target.h"
#include "nn/near.h"
#include "nn/random_sizes.h"

using namespace glimpse;
using test::near;

namespace {

struct Shape {
  int64_t m, out, in;
};

// No row, one, up to eight (few rows), more (panels); sizes that are no multiple of anything.
std::vector<Shape> shapes() {
  std::vector<Shape> all = {{0, 33, 200},   {1, 1, 1},    {1, 16, 64},    {1, 35, 37},    {2, 48, 128},
                            {3, 17, 68},    {5, 160, 30}, {8, 33, 200},   {9, 130, 65},   {17, 48, 96},
                            {64, 256, 256}, {70, 50, 7},  {4, 100, 3420}, {33, 1300, 34}, {1, 272, 2048},
                            {1, 70, 4200},  {2, 70, 4200}};
  test::RandomSizes size(11);
  for (int i = 0; i < 24; ++i) all.push_back({size(80), size(300), size(1200)});
  return all;
}

double largest(const at::Tensor& t) {
  return t.abs().max().item<double>();
}

at::Tensor low_bit_linear(const at::Tensor& x, const LowBitWeight& weight, const at::Tensor& bias) {
  return low_bit_products(x, std::array{LowBitFactor{&weight, bias}})[0];
}

// x as the kernels see it.
at::Tensor rounded_rows(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat), top = wide.abs().amax(1, true);
  return at::where(top > 0, (wide * (127.0 / top)).round() * (top / 127), 0.0).to(at::kDouble);
}

}  // namespace

TEST_CASE("rounding to 8 bits errs by half a step at most, to 4 bits by little more") {
  at::manual_seed(1);
  for (const Shape& s : shapes()) {
    const at::Tensor weight = at::randn({s.out, s.in});
    const LowBitWeight eight = quantise_weight(weight, 0);
    const at::Tensor step = weight.abs().amax(1, true) / 127;
    CHECK(((eight.dequantised() - weight).abs() <= step * 0.501).all().item<bool>());
    for (const int64_t group : {32, 64}) {
      const LowBitWeight four = quantise_weight(weight, group);
      const at::Tensor error = four.dequantised() - weight;
      REQUIRE((error.sizes() == weight.sizes()));
      for (int64_t first = 0; first < s.in; first += group) {
        const auto part = [&](const at::Tensor& t) {
          return t.narrow(1, first, std::min(group, s.in - first));
        };
        // The end of the range with one step less may be cut off by one step and a half; the least step is
        // a fifteenth of the row's largest.
        const at::Tensor limit = part(weight).abs().amax(1, true) / 8 * 1.7 + step * (127.0 / 240);
        CHECK((part(error).abs() <= limit).all().item<bool>());
      }
      if (s.in >= 64) CHECK(error.norm().item<double>() < 0.12 * weight.norm().item<double>());
    }
  }
}

TEST_CASE("weights that AWQ or GPTQ rounded lose half as much again in 4 bits, and little in 8") {
  at::manual_seed(2);
  for (const bool symmetric : {false, true}) {
    const at::Tensor weight = at::randn({64, 1024}), groups = weight.view({64, 8, 128});
    const at::Tensor top = groups.abs().amax(2, true);
    const at::Tensor low = symmetric ? -top : groups.amin(2, true),
                     high = symmetric ? top : groups.amax(2, true);
    const at::Tensor scale = (high - low) / 15,
                     zero = symmetric ? at::full_like(low, 8) : (-low / scale).round();
    const at::Tensor given = (((groups / scale + zero).round().clamp(0, 15) - zero) * scale).view({64, 1024});
    const auto error = [](const at::Tensor& got, const at::Tensor& expected) {
      return ((got - expected).norm() / expected.norm()).item<double>();
    };
    // Their own error is a tenth; measured: another 4 to 5 percent in 4 bits, which makes 7 to 8 percent more
    // of it in all, and 0.7 percent in 8 bits.
    const at::Tensor four = quantise_weight(given, 64).dequantised();
    CHECK(error(four, given) < 0.055);
    CHECK(error(four, weight) < 1.1 * error(given, weight));
    CHECK(error(quantise_weight(given, 0).dequantised(), given) < 0.01);
  }
}

TEST_CASE("products of 8- and 4-bit weights on every instruction set") {
  test::on_every_target(low_bit::target_name, [] {
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      for (const Shape& s : shapes())
        for (const int64_t group : {0, 32, 64}) {
          CAPTURE(s.m);
          CAPTURE(s.out);
          CAPTURE(s.in);
          CAPTURE(group);
          const LowBitWeight weight = quantise_weight(at::randn({s.out, s.in}), group);
          const at::Tensor x = at::randn({s.m, s.in}).to(dtype) * at::rand({s.m, 1}).to(dtype);
          const at::Tensor bias = s.out % 2 ? at::randn({s.out}).to(dtype) : at::Tensor();
          const at::Tensor got = low_bit_linear(x, weight, bias);
          const at::Tensor dense = weight.dequantised().to(at::kDouble);
          const at::Tensor plain =
              at::linear(rounded_rows(x), dense, bias.defined() ? bias.to(at::kDouble) : bias);
          REQUIRE((got.scalar_type() == dtype));
          CHECK(
              near(got, plain, dtype == at::kFloat ? 1e-5 : 8e-3, 1e-4 * std::max(1.0, largest(dense) / 3)));
        }
  });
}

TEST_CASE("a row's product does not depend on the rows beside it, nor on the instruction set") {
  for (const int64_t group : {0, 64}) {
    at::manual_seed(3);
    const LowBitWeight weight = quantise_weight(at::randn({100, 300}), group);
    const at::Tensor x = at::randn({8, 300});
    const at::Tensor all = low_bit_linear(x, weight, {});
    for (int64_t r = 0; r < 8; ++r)
      CHECK(at::equal(low_bit_linear(x.narrow(0, r, 1), weight, {})[0], all[r]));
    CHECK(at::equal(low_bit_linear(at::cat({x, x}), weight, {}).narrow(0, 8, 8), all));
  }
}

TEST_CASE("rows of zeros give the bias, rows that are not finite give NaN") {
  const LowBitWeight weight = quantise_weight(at::randn({20, 40}), 0);
  const at::Tensor bias = at::randn({20});
  at::Tensor x = at::zeros({3, 40});
  x[1][7] = INFINITY;
  x[2][39] = NAN;
  const at::Tensor y = low_bit_linear(x, weight, bias);
  CHECK(at::equal(y[0], bias));
  CHECK(y.narrow(0, 1, 2).isnan().all().item<bool>());
}

TEST_CASE("rows of the smallest numbers stay finite") {
  const LowBitWeight weight = quantise_weight(at::randn({20, 37}), 0);
  CHECK(low_bit_linear(at::full({1, 37}, 1e-44), weight, {}).isfinite().all().item<bool>());
}

TEST_CASE("weights that are not finite, and rows whose sums could overflow, are refused") {
  at::Tensor weight = at::randn({4, 4});
  weight[1][2] = NAN;
  CHECK_THROWS_AS(quantise_weight(weight, 0), Error);
  CHECK_THROWS_AS(quantise_weight(at::ones({1, 65537}), 0), Error);
}
