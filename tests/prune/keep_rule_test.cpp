#include "glimpse/prune/keep_rule.h"

#include <cmath>
#include <limits>

#include "glimpse/base/check.h"
#include "prune/views.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Ids = std::vector<int64_t>;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

KeepRule rule(double threshold, std::optional<double> cap = {}, std::optional<int64_t> least = {}) {
  return {threshold, cap, least, {}};
}

// Method.md section 4, word by word, in double.
Ids by_the_book(const at::Tensor& logits, const KeepRule& r) {
  const auto n = logits.numel();
  std::vector<double> p(n);
  for (int64_t i = 0; i < n; ++i) p[i] = 1 / (1 + std::exp(-logits[i].item<double>()));
  const auto top = [&](int64_t count) {
    std::vector<bool> in(n);
    for (int64_t k = 0; k < std::min(count, n); ++k) {
      int64_t best = -1;
      for (int64_t i = 0; i < n; ++i)
        if (!in[i] && (best < 0 || p[i] > p[best])) best = i;
      in[best] = true;
    }
    return in;
  };
  std::vector<bool> keep(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keep[i] = p[i] > r.threshold;
  if (r.max_keep && static_cast<double>(count) / static_cast<double>(n) > *r.max_keep) {
    keep = top(static_cast<int64_t>(*r.max_keep * static_cast<double>(n)));
    count = std::count(keep.begin(), keep.end(), true);
  }
  if (r.min_keep && count < *r.min_keep) {
    const std::vector<bool> more = top(*r.min_keep);
    for (int64_t i = 0; i < n; ++i) keep[i] = keep[i] || more[i];
  }
  Ids out;
  for (int64_t i = 0; i < n; ++i)
    if (keep[i]) out.push_back(i);
  return out;
}

}  // namespace

TEST_CASE("random logits and settings, as the method says") {
  at::manual_seed(5);
  for (int64_t n = 1; n < 40; n += 3)
    for (const double threshold : {0.1, 0.5, 0.73, 0.99})
      for (const std::optional<double> cap : {std::optional<double>(), {0.0}, {0.111}, {0.5}, {1.0}})
        for (const std::optional<int64_t> least : {std::optional<int64_t>(), {0}, {1}, {5}, {100}}) {
          const at::Tensor logits = at::randn({n}) * 3;
          const KeepRule r = rule(threshold, cap, least);
          CHECK(r.apply(logits) == by_the_book(logits, r));
        }
}

TEST_CASE("thresholds 0 and 1") {
  const at::Tensor logits = at::tensor({-50.0f, 0.0f, 50.0f, -kInf, kInf});
  CHECK(rule(0).apply(logits) == Ids{0, 1, 2, 4});  // p > 0: a mask of 0 is not kept
  CHECK(rule(1).apply(logits).empty());             // no probability is above 1
  CHECK(rule(1, {}, 2).apply(logits) == Ids{2, 4});
  CHECK(rule(0.5).apply(at::zeros({3})).empty());  // strictly above
}

TEST_CASE("a cap replaces, a minimum adds, ties go to the lower index") {
  const at::Tensor same = at::full({10}, 2.0f);
  CHECK(rule(0.5).apply(same).size() == 10);
  CHECK(rule(0.5, 0.3).apply(same) == Ids{0, 1, 2});
  CHECK(rule(0.5, 0.0).apply(same).empty());
  CHECK(rule(0.5, 0.0, 1).apply(same) == Ids{0});
  CHECK(rule(0.99, {}, 4).apply(same) == Ids{0, 1, 2, 3});
  CHECK(rule(0.5, 1.0).apply(same).size() == 10);
  CHECK(rule(0.5, 0.25, 5).apply(at::tensor({1.f, 5.f, 2.f, 5.f, 3.f, 5.f, 4.f, 5.f})) == Ids{1, 3, 5, 6, 7});
  CHECK(rule(0.5, 0.5, 2).apply(at::empty({0})).empty());
}

TEST_CASE("ranking uses float32 logits, not rounded probabilities") {
  // In float32 both sigmoids are 1, in bf16 all four would tie.
  const at::Tensor logits = at::tensor({20.0f, 30.0f, 25.0f, 30.0001f});
  CHECK(rule(0.5, 0.25).apply(logits) == Ids{3});
  CHECK(rule(0.5, 0.5).apply(logits) == Ids{1, 3});
  CHECK(rule(0.5).apply(at::tensor({1e-6f, -1e-6f})) == Ids{0});
  CHECK(rule(0.5, 0.5).apply(at::tensor({2.0, 1.0}).to(at::kBFloat16)) == Ids{0});
}

TEST_CASE("logits that are no numbers are never kept first and break nothing") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> values(100, nan);
  values[70] = 1;
  values[30] = -1;
  CHECK(rule(0.5).apply(at::tensor(values)) == Ids{70});
  CHECK(top_indices(at::tensor(values), 2) == Ids{30, 70});
  CHECK(top_indices(at::tensor(values), 100).size() == 100);
}

TEST_CASE("top_indices and merge_indices") {
  const at::Tensor values = at::tensor({3.0, 1.0, 2.0});
  CHECK(top_indices(values, -3).empty());
  CHECK(top_indices(values, 0).empty());
  CHECK(top_indices(values, 2) == Ids{0, 2});
  CHECK(top_indices(values, 99) == Ids{0, 1, 2});
  CHECK(merge_indices({1, 4, 7}, {0, 4, 9}) == Ids{0, 1, 4, 7, 9});
  CHECK(merge_indices({}, {2}) == Ids{2});
}

TEST_CASE("anchors are the corners of a single image") {
  test::Views views({{3, 4}});
  KeepRule r = rule(0.5);
  CHECK(r.corners(views.view).empty());
  r.anchors = {"br", "tl"};
  CHECK(r.corners(views.view) == Ids{0, 11});
  r.anchors = {"tl", "tr", "bl", "br"};
  CHECK(r.corners(views.view) == Ids{0, 3, 8, 11});
  views.set_living({2, 3, 5, 8});  // the corners that are left
  CHECK(r.corners(views.view) == Ids{1, 3});
  CHECK(r.corners(test::Views({{3, 4}, {2, 2}}).view).empty());
  CHECK(r.corners(test::Views({{1, 1}}).view) == Ids{0});  // once, though all four are there
  CHECK_THROWS_WITH_AS(r.fields().from_json({{"anchors", {"tl", "top"}}}, "glimpse"),
                       "glimpse: anchors: expected tl, tr, bl or br, got 'top'", Error);
}

TEST_CASE("a budget of all visual tokens") {
  CHECK_FALSE(Budget().of(100));
  CHECK(Budget{.keep = 0.111, .count = {}}.of(256) == 28);
  CHECK(Budget{.keep = 1.0, .count = {}}.of(7) == 7);
  CHECK(Budget{.keep = 0.001, .count = {}}.of(7) == 1);
  CHECK(Budget{.keep = {}, .count = 5}.of(7) == 5);
  CHECK(Budget{.keep = {}, .count = 50}.of(7) == 7);
  CHECK(Budget{.keep = 0.5, .count = 3}.of(100) == 3);
  for (const double bad : {0.0, -0.5, 1.5, std::nan("")})
    CHECK_THROWS_AS((Budget{.keep = bad, .count = {}}.of(7)), Error);
  CHECK_THROWS_AS((Budget{.keep = {}, .count = -1}.of(7)), Error);
}
