// Weights that stay as another program rounded them, against ATen arithmetic in double.
#define HWY_WANT_AVX3_DL 1
#include "glimpse/nn/step_kernels.h"

#include "glimpse/base/check.h"
#include "glimpse/nn/low_bit.h"
#include "nn/every_target.h"
#include "nn/near.h"
#include "nn/random_sizes.h"

using namespace glimpse;
using test::near;

namespace {

struct Stored {
  FewBits few_bits;
  at::Tensor values;  // [out, in] float32
};

// A weight of random steps whose scales and zeros have `digits` binary digits.
Stored random_steps(int64_t out, int64_t in, int64_t group, bool has_table, int digits) {
  const int64_t groups = (in + group - 1) / group;
  const auto rounded = [&](const at::Tensor& t) {
    const at::Tensor unit = at::pow(2.0, t.abs().clamp_min(1e-6).log2().floor() - (digits - 1));
    return ((t / unit).round() * unit).to(at::kFloat);
  };
  Steps all{at::randint(0, 16, {out, in}, at::kByte), rounded(at::randn({out, groups}) * 0.003), {}};
  at::Tensor table;
  if (has_table) {
    table = (at::randperm(200).narrow(0, 0, 16) + 20).to(at::kByte);
    all.offset = all.scale * -128;
  } else {
    all.offset = all.scale * rounded(-at::rand({out, groups}) * 16);
  }
  Stored stored;
  const auto by_input = [&](const at::Tensor& t) { return t.repeat_interleave(group, 1).narrow(1, 0, in); };
  const at::Tensor steps = has_table ? table.index({all.step.to(at::kLong)}) : all.step;
  stored.values = by_input(all.scale) * steps.to(at::kFloat) + by_input(all.offset);
  stored.few_bits.group = group;
  stored.few_bits.table = table;
  stored.few_bits.steps = [all](int64_t first, int64_t count) {
    const auto some = [&](const at::Tensor& t) { return t.narrow(0, first, count).contiguous(); };
    return Steps{some(all.step), some(all.scale), some(all.offset)};
  };
  stored.few_bits.rows = [values = stored.values](int64_t first, int64_t count) {
    return values.narrow(0, first, count);
  };
  return stored;
}

at::Tensor product(const at::Tensor& x, const LowBitWeight& weight, const at::Tensor& bias = {}) {
  return low_bit_products(x, std::array{LowBitFactor{&weight, bias}})[0];
}

// x as the kernels see it.
at::Tensor rounded_rows(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat), top = wide.abs().amax(1, true);
  return at::where(top > 0, (wide * (127.0 / top)).round() * (top / 127), 0.0).to(at::kDouble);
}

double largest(const at::Tensor& t) {
  return t.abs().max().item<double>();
}

}  // namespace

TEST_CASE("steps with scales of 11 digits keep their values, others all but the twelfth digit") {
  at::manual_seed(4);
  for (const bool has_table : {false, true})
    for (const int64_t group : {16, 32, 64, 128}) {
      const Stored exact = random_steps(37, 384, group, has_table, 11);
      const LowBitWeight kept = keep_few_bits(37, 384, exact.few_bits);
      CHECK(kept.is_stepped());
      CHECK(near(kept.dequantised(), exact.values, 1e-6, 1e-9));
      const Stored finer = random_steps(37, 384, group, has_table, 20);
      const at::Tensor error = keep_few_bits(37, 384, finer.few_bits).dequantised() - finer.values;
      // A scale times up to 16 steps, or a table's 255, and as much again for the zero.
      const at::Tensor limit =
          finer.few_bits.steps(0, 37).scale.abs().amax(1, true) * (2 * (has_table ? 255 : 16) / 2048.0);
      CHECK((error.abs() <= limit).all().item<bool>());
      CHECK(error.norm().item<double>() < 5e-4 * finer.values.norm().item<double>());
    }
}

TEST_CASE("a group whose steps make no difference is its offset") {
  for (const bool has_table : {false, true}) {
    Stored stored = random_steps(17, 64, 32, has_table, 11);
    Steps all = stored.few_bits.steps(0, 17);
    all.scale[3][1] = 0;
    all.offset[3][1] = -0.25;
    all.scale[4][0] = 1e-9;
    all.offset[4][0] = 0.5;
    all.scale[5].zero_();
    all.offset[5].zero_();
    stored.few_bits.steps = [all](int64_t first, int64_t count) {
      return Steps{all.step.narrow(0, first, count).contiguous(),
                   all.scale.narrow(0, first, count).contiguous(),
                   all.offset.narrow(0, first, count).contiguous()};
    };
    const at::Tensor values = keep_few_bits(17, 64, stored.few_bits).dequantised();
    CHECK(near(values[3].narrow(0, 32, 32), at::full({32}, -0.25), 1e-6, 0));
    CHECK(near(values[4].narrow(0, 0, 32), at::full({32}, 0.5), 1e-6, 0));
    CHECK(near(values[5], at::zeros({64}), 0, 0));
    all.scale[6][0] = INFINITY;
    CHECK_THROWS_AS(keep_few_bits(17, 64, stored.few_bits), Error);
  }
}

TEST_CASE("products of kept steps on every instruction set") {
  struct Shape {
    int64_t m, out, in;
  };
  std::vector<Shape> shapes = {{0, 33, 200},   {1, 1, 8},      {1, 16, 64},   {2, 48, 128}, {3, 17, 68},
                               {5, 160, 30},   {8, 33, 200},   {9, 130, 65},  {17, 48, 96}, {64, 256, 256},
                               {4, 100, 3420}, {1, 272, 2048}, {33, 1300, 34}};
  test::RandomSizes size(12);
  for (int i = 0; i < 12; ++i) shapes.push_back({size(80), size(300), size(1200)});
  test::on_every_target(low_bit::step_target_name, [&] {
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      for (const Shape& s : shapes)
        for (const int64_t group : {16, 32, 128}) {
          CAPTURE(s.m);
          CAPTURE(s.out);
          CAPTURE(s.in);
          CAPTURE(group);
          const Stored stored = random_steps(s.out, s.in, group, s.in % 2 != 0, 20);
          const LowBitWeight weight = keep_few_bits(s.out, s.in, stored.few_bits);
          const at::Tensor x = at::randn({s.m, s.in}).to(dtype) * at::rand({s.m, 1}).to(dtype);
          const at::Tensor bias = s.out % 2 ? at::randn({s.out}).to(dtype) : at::Tensor();
          const at::Tensor got = product(x, weight, bias), dense = weight.dequantised().to(at::kDouble);
          const at::Tensor plain =
              at::linear(rounded_rows(x), dense, bias.defined() ? bias.to(at::kDouble) : bias);
          REQUIRE((got.scalar_type() == dtype));
          CHECK(
              near(got, plain, dtype == at::kFloat ? 1e-5 : 8e-3, 1e-4 * std::max(1.0, largest(dense) * 3)));
        }
  });
}

TEST_CASE("a row's product with kept steps does not depend on the rows beside it") {
  test::on_every_target(low_bit::step_target_name, [] {
    const Stored stored = random_steps(100, 320, 32, false, 20);
    const LowBitWeight weight = keep_few_bits(100, 320, stored.few_bits);
    const at::Tensor x = at::randn({21, 320}), all = product(x, weight);
    for (const int64_t count : {1, 2, 3, 5, 8, 13})
      for (int64_t r = 0; r + count <= 21; ++r)
        CHECK(at::equal(product(x.narrow(0, r, count), weight), all.narrow(0, r, count)));
  });
}

TEST_CASE("weights of several kinds take their products of the same rows together") {
  at::manual_seed(5);
  const LowBitWeight fine = keep_few_bits(48, 256, random_steps(48, 256, 16, false, 20).few_bits),
                     table = keep_few_bits(33, 256, random_steps(33, 256, 32, true, 20).few_bits),
                     eight = quantise_weight(at::randn({20, 256}), 0),
                     four = quantise_weight(at::randn({20, 256}), 64);
  for (const int64_t m : {1, 7, 40}) {
    const at::Tensor x = at::randn({m, 256});
    const std::array all = {LowBitFactor{&fine, {}}, LowBitFactor{&table, {}}, LowBitFactor{&eight, {}},
                            LowBitFactor{&four, {}}};
    const std::vector<at::Tensor> together = low_bit_products(x, all);
    for (size_t i = 0; i < all.size(); ++i) CHECK(at::equal(together[i], product(x, *all[i].weight)));
  }
}

TEST_CASE("rows that are not finite give NaN with kept steps") {
  const LowBitWeight weight = keep_few_bits(20, 64, random_steps(20, 64, 32, false, 11).few_bits);
  at::Tensor x = at::zeros({3, 64});
  x[1][7] = INFINITY;
  x[2][39] = NAN;
  const at::Tensor bias = at::randn({20}), y = product(x, weight, bias);
  CHECK(at::equal(y[0], bias));
  CHECK(y.narrow(0, 1, 2).isnan().all().item<bool>());
}
