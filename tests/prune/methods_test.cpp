// Selection functions of the compared methods: small cases worked out by hand, and a plain rewrite to compare
// with where there are no golden numbers.
#include <algorithm>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/dart.h"
#include "glimpse/prune/divprune.h"
#include "glimpse/prune/pyramiddrop.h"
#include "glimpse/prune/registry.h"
#include "glimpse/prune/shares.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"
#include "prune/views.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::Views;
using Ids = std::vector<int64_t>;

namespace {

at::Tensor random_rows(int64_t n, int64_t d, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({n, d});
}

double cosine(const at::Tensor& a, const at::Tensor& b) {
  return (a.dot(b) / (a.norm() * b.norm())).item<double>();
}

Ids everything(int64_t n) {
  Ids all(n);
  std::iota(all.begin(), all.end(), int64_t{0});
  return all;
}

Ids sorted(Ids ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

// DART token by token.
Ids plain_dart(const at::Tensor& features, const at::Tensor& text, size_t count,
               const Dart::Options& options) {
  const auto longest = [](const at::Tensor& x, int64_t some) {
    Ids order = everything(x.size(0));
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return x[a].abs().sum().item<float>() > x[b].abs().sum().item<float>();
    });
    order.resize(std::min<size_t>(order.size(), static_cast<size_t>(some)));
    return sorted(order);
  };
  Ids keep = longest(features, std::min<int64_t>(options.image_pivots, static_cast<int64_t>(count)));
  std::vector<at::Tensor> pivots;
  for (const int64_t i : keep) pivots.push_back(features[i]);
  for (const int64_t i : longest(text, options.text_pivots)) pivots.push_back(text[i]);
  for (size_t p = 0; p < pivots.size(); ++p) {
    const size_t left = pivots.size() - p, share = (count - keep.size() + left - 1) / left;
    for (size_t taken = 0; taken < share; ++taken) {
      int64_t best = -1;
      for (int64_t i = 0; i < features.size(0); ++i)
        if (std::find(keep.begin(), keep.end(), i) == keep.end() &&
            (best < 0 || cosine(features[i], pivots[p]) < cosine(features[best], pivots[p])))
          best = i;
      keep.push_back(best);
    }
  }
  return sorted(keep);
}

}  // namespace

TEST_CASE("cosines, assignment and merging") {
  const at::Tensor x = random_rows(1200, 24, 1);  // more than one block
  const at::Tensor unit = unit_rows(x);
  CHECK((cosines(unit) - at::mm(unit, unit.t())).abs().max().item<float>() < 1e-6);
  CHECK(at::equal(unit_rows(at::zeros({2, 3})), at::zeros({2, 3})));
  const Assignment assignment = assign(unit, others(1200, {3, 700, 900}), {3, 700, 900});
  CHECK(assignment.dropped.size() == 1197);
  for (size_t i = 0; i < assignment.dropped.size(); i += 97) {
    const at::Tensor own = x[assignment.dropped[i]];
    const Ids targets = {3, 700, 900};
    for (const int64_t other : targets)
      CHECK(cosine(own, x[targets[assignment.target[i]]]) >= cosine(own, x[other]) - 1e-6);
  }
  const Assigned sums = sum_assigned(at::arange(8, at::kFloat).view({4, 2}), {{1, 3}, {0, 0}}, 2);
  CHECK(at::equal(sums.sum, at::tensor({8.f, 10.f, 0.f, 0.f}).view({2, 2})));
  CHECK(at::equal(sums.count.flatten(), at::tensor({2.f, 0.f})));
}

TEST_CASE("DivPrune on a line of directions") {
  std::vector<float> xy;
  for (const double degrees : {0.0, 10.0, 20.0, 90.0, 180.0}) {
    xy.push_back(static_cast<float>(std::cos(degrees * M_PI / 180)));
    xy.push_back(static_cast<float>(std::sin(degrees * M_PI / 180)));
  }
  const at::Tensor x = at::tensor(xy).view({5, 2});
  CHECK(divprune_order(x, 5) == Ids{4, 0, 3, 2, 1});  // the loneliest, its opposite, between them, ...
  CHECK(divprune_order(x * 7, 3) == Ids{4, 0, 3});    // length does not matter
  CHECK(divprune_order(x, 0).empty());
  CHECK(divprune_order(x, 9).size() == 5);
}

TEST_CASE("greedy choices never repeat, whatever the tokens") {
  for (const at::Tensor& x :
       {at::ones({6, 4}), at::zeros({6, 4}), at::full({6, 4}, NAN), random_rows(6, 2, 3)}) {
    CHECK(sorted(divprune_order(x, 6)) == everything(6));
    CHECK(sorted(cdpruner_order(x, at::ones({6}), 6)) == everything(6));
    CHECK(dart_tokens(x, x, 6, {}) == everything(6));
  }
}

TEST_CASE("CDPruner: relevance decides among alike, difference among relevant") {
  const at::Tensor x = at::tensor({1.f, 0.f, 1.f, 0.01f, 0.f, 1.f, 0.7f, 0.7f}).view({4, 2});
  CHECK(cdpruner_order(x, at::tensor({0.5f, 1.f, 0.9f, 0.1f}), 2) == Ids{1, 2});
  CHECK(cdpruner_order(x, at::tensor({1.f, 0.5f, 0.2f, 0.1f}), 2) == Ids{0, 2});
  // The rank is 2: from the third on by relevance.
  CHECK(cdpruner_order(x, at::tensor({0.4f, 1.f, 0.9f, 0.5f}), 4) == Ids{1, 2, 3, 0});
  // However small a relevance, what is new comes before what is known.
  CHECK(cdpruner_order(at::tensor({1.f, 0.f, 0.f, 1.f, 0.f, 0.f, 0.f, 1.f, 0.f, 0.f, 0.f, 1.f}).view({4, 3}),
                       at::tensor({1.f, 0.9f, 4e-4f, 3e-4f}), 3) == Ids{0, 2, 3});
  CHECK(at::equal(cdpruner_relevance(at::ones({3, 2}), at::ones({1, 2}), false), at::ones({3})));
}

TEST_CASE("DART equals a plain rewrite") {
  const at::Tensor x = random_rows(60, 8, 5), text = random_rows(9, 8, 6);
  for (const Dart::Options& options : {Dart::Options{0.1, 4, 4}, Dart::Options{0.1, 3, 0},
                                       Dart::Options{0.1, 0, 2}, Dart::Options{0.1, 50, 20}})
    for (const int64_t count : {0, 1, 5, 22, 60}) {
      CAPTURE(count);
      CHECK(dart_tokens(x, text, count, options) == plain_dart(x, text, static_cast<size_t>(count), options));
    }
  CHECK_THROWS_WITH_AS(dart_tokens(x, text, 5, {0.1, 0, 0}),
                       "dart: needs a pivot: image_pivots and text_pivots are both 0", Error);
  CHECK(dart_tokens(x, at::empty({0, 8}), 7, {}).size() == 7);
}

TEST_CASE("VisionZip: dominant tokens stay, the others move into evenly spaced ones") {
  const at::Tensor keys = at::tensor({1.f, 0.f, 0.f, 1.f, 1.f, 0.f, 0.f, 1.f, 1.f, 1.f}).view({5, 2});
  const VisionZipChoice choice = visionzip_choice(at::tensor({0.f, 0.f, 0.f, 0.f, 9.f}), keys, 1, 2);
  CHECK(choice.dominant == Ids{4});
  CHECK(choice.contextual == Ids{0, 2});
  CHECK(choice.merged.dropped == Ids{1, 3});
  const at::Tensor merged = visionzip_merge(at::tensor({10.f, 1.f, 20.f, 3.f, 0.f}).view({5, 1}), choice);
  CHECK(at::equal(merged.flatten(), at::tensor({12.f, 20.f})));  // 10 + mean(1, 3): equals go to the first
  CHECK(visionzip_choice(at::ones({5}), keys, 5, 0).contextual.empty());
  CHECK(visionzip_choice(at::ones({5}), keys, 3, 2).merged.dropped.empty());
  CHECK_THROWS_WITH_AS(
      visionzip_choice(at::ones({5}), keys, 3, 9),
      "visionzip: 9 contextual tokens were asked for, but beside 3 dominant ones an image has 2", Error);
}

namespace {

// Two images of 3 x 4 and 2 x 5 patches with class tokens, at the encoder's output; the first patches of an
// image are attended to most.
struct ClassViews : Views {
  ClassViews() : Views({{3, 4}, {2, 5}}) {
    Ids living = {22};
    for (int64_t i = 0; i < 12; ++i) living.push_back(i);
    living.push_back(23);
    for (int64_t i = 12; i < 22; ++i) living.push_back(i);
    set_living(living);
    view.hidden = random_rows(24, 6, 8);
    view.vision_attention = {{-at::arange(24, at::kFloat), random_rows(24, 4, 9)}};
  }
  Ids kept(const Selection& selection) const {
    Ids out;
    for (const int64_t index : selection.keep) out.push_back(view.living[index]);
    return out;
  }
};

}  // namespace

TEST_CASE("VisionZip beside a class token") {
  ClassViews views;
  const auto select = [&](const VisionZip::Options& options, const Budget& budget = {}) {
    const VisionZip pruner(options);
    CHECK(pruner.cuts()[0].when() == Moment());
    return pruner.select(views.view, pruner.cuts()[0], budget);
  };
  // Two dominant patches beside it; of the other ten and eight every fifth and every fourth.
  const Selection three = select({3, 2, true});
  CHECK(views.kept(three) == Ids{22, 0, 1, 2, 7, 23, 12, 13, 14, 18});
  CHECK(at::equal(three.features[0], views.view.hidden[0]));
  CHECK(at::equal(three.features[2], views.view.hidden[2]));
  CHECK(!at::equal(three.features[3], views.view.hidden[3]));
  const VisionZipChoice choice = visionzip_choice(-at::arange(12, at::kFloat),
                                                  views.view.vision_attention[0].keys.narrow(0, 0, 12), 2, 2);
  CHECK((three.features.narrow(0, 3, 2) - visionzip_merge(views.view.hidden.narrow(0, 1, 12), choice))
            .abs()
            .max()
            .item<float>() < 1e-6);
  // A budget in the same proportion, the class token counted; as many tokens as patches: no pruning.
  CHECK(views.kept(select({3, 2, true}, {.keep = {}, .count = {}, .counts = {1, 2}})) == Ids{22, 23, 12});
  CHECK(views.kept(select({3, 2, true}, {.keep = {}, .count = {}, .counts = {0, 5}})) ==
        Ids{23, 12, 13, 14, 18});
  const Selection all = select({3, 2, true}, {.keep = 1});
  CHECK(views.kept(all) == everything(22));
  CHECK(at::equal(all.features, views.view.hidden.index_select(0, at::tensor(all.keep, at::kLong))));
  // Fractions: of 12 and of 10.
  CHECK(views.kept(select({0.25, 0.125, true})) == Ids{22, 0, 1, 2, 23, 12, 13});
  CHECK_THROWS_WITH_AS(select({9, 2, true}),
                       "visionzip: 9 dominant and 2 contextual tokens are more than the 10 of an image",
                       Error);
  CHECK_THROWS_WITH_AS(VisionZip({3, 0, true}),
                       "visionzip: contextual is 0, but the other tokens need one to merge into", Error);
  CHECK_THROWS_WITH_AS(VisionZip({2.5, 1, true}),
                       "visionzip: 2.5 is neither a fraction below 1 nor a number of tokens", Error);
}

TEST_CASE("later methods see the class token as one of its image") {
  ClassViews views;
  views.view.text_hidden = random_rows(5, 6, 10);
  views.view.question = at::tensor({1, 2}, at::kLong);
  views.view.vision_attention.push_back(views.view.vision_attention[0]);
  const auto shares = segment_shares(views.view, {.keep = {}, .count = {}, .counts = {3, 40}}, {});
  CHECK(shares[0].living == 13);
  CHECK(shares[1].first == 13);
  CHECK(shares[1].keep == 11);
  CHECK(shares[1].class_token);
  for (const char* method : {"divprune", "cdpruner", "dart", "random", "vscan(window=2)", "visionzip"}) {
    CAPTURE(method);
    const auto pruner = make_pruners(method, {28, nullptr, 0}).at(0);
    const Selection chosen =
        pruner->select(views.view, pruner->cuts()[0], {.keep = {}, .count = {}, .counts = {13, 11}});
    CHECK(chosen.keep == everything(24));
  }
}

TEST_CASE("own rules keep a token of the smallest image") {
  Views views({{1, 1}, {2, 2}, {1, 3}});
  View& view = views.view;
  view.hidden = random_rows(8, 6, 11);
  view.text_hidden = random_rows(5, 6, 12);
  view.question = at::tensor({3, 4}, at::kLong);
  view.ahead = at::rand({8});
  view.vision_attention = {{at::rand({8}), random_rows(8, 4, 13)}, {at::rand({8}), random_rows(8, 4, 14)}};
  for (const char* method : {"divprune", "cdpruner", "dart", "vscan", "visionzip"}) {
    CAPTURE(method);
    const auto pruner = make_pruners(method, {28, nullptr, 0}).at(0);
    const Ids keep = pruner->select(view, pruner->cuts()[0], {}).keep;
    REQUIRE(keep.size() == 3);
    CHECK(keep[0] == 0);
    CHECK((keep[1] >= 1 && keep[1] < 5));
    CHECK(keep[2] >= 5);
  }
  const auto pruner = make_pruners("pyramiddrop(layers=2,keep=0.01)", {28, nullptr, 0}).at(0);
  CHECK(pruner->select(view, pruner->cuts()[0], {}).keep.size() == 1);
}

TEST_CASE("rows of cosines computed one by one give the same choice") {
  const at::Tensor x = random_rows(1300, 24, 15);
  const at::Tensor r = at::rand({1300}) * 0.9 + 0.1;
  CHECK(divprune_order(x, 300, 0) == divprune_order(x, 300));
  CHECK(cdpruner_order(x, r, 20, 0) == cdpruner_order(x, r, 20));
  const Cosines whole(unit_rows(x)), single(unit_rows(x), 1299);
  const at::Tensor token = at::tensor({77}, at::kLong);
  CHECK((whole.nearest() - single.nearest()).abs().max().item<float>() < 1e-6);
  CHECK((whole.row(token) - single.row(token)).narrow(0, 78, 1222).abs().max().item<float>() < 1e-6);
}

TEST_CASE("VScan: windows") {
  // A 4 x 5 grid in windows of 2: the last column belongs to the last windows.
  const at::Tensor places = at::arange(20), scores = at::arange(20, at::kFloat);
  CHECK(vscan_windows(4, 5, 2) == 4);
  CHECK(vscan_windows(1, 9, 4) == 2);
  CHECK(vscan_local(scores, places, 4, 5, 2, 1, 4) == Ids{6, 9, 16, 19});
  CHECK(vscan_local(scores, places, 4, 5, 2, 1, 3) == Ids{9, 16, 19});
  CHECK(vscan_local(scores, places, 4, 5, 2, 20, 3) == Ids{17, 18, 19});
  CHECK(vscan_global(scores, {19, 17}, 2) == Ids{16, 18});
  CHECK(vscan_global(scores, {}, 99).size() == 20);
  // Merging: 1 into 0 and 3 into 2, as a mean.
  const at::Tensor x = at::tensor({2.f, 0.f, 4.f, 0.f, 0.f, 2.f, 0.f, 8.f}).view({4, 2});
  CHECK(at::equal(vscan_merge(x, {0, 2}), at::tensor({3.f, 0.f, 0.f, 5.f}).view({2, 2})));
  CHECK(at::equal(vscan_merge(x, {0, 1, 2, 3}), x));
}

TEST_CASE("shares of several images") {
  const Views views({{4, 5}, {2, 5}, {1, 1}});
  const auto counts = [&](const Budget& budget) { return *budget.of(views.view.segments); };
  CHECK(counts({.keep = {}, .count = 31}) == Ids{20, 10, 1});
  CHECK(counts({.keep = {}, .count = 10}) == Ids{6, 3, 1});
  CHECK(counts({.keep = 0.5}) == Ids{10, 5, 1});
  CHECK(counts({.keep = {}, .count = {}, .counts = {1, 2, 0}}) == Ids{1, 2, 0});
  CHECK(Budget{.keep = {}, .count = {}, .counts = {1, 2, 0}}.of(31) == 3);
  CHECK_FALSE(Budget{}.of(views.view.segments));
  CHECK_THROWS_AS(counts({.keep = {}, .count = {}, .counts = {-1, 2, 0}}), Error);
  const auto own = [](int64_t n) { return n / 2; };
  const auto shares = segment_shares(views.view, {}, own);
  CHECK(shares[1].first == 20);
  CHECK(shares[1].keep == 5);
  CHECK_FALSE(shares[1].budgeted);
}

TEST_CASE("compositions and settings") {
  const PrunerContext qwen = {28, nullptr, 7, false}, llava = {32, nullptr, 5, true};
  const auto settings = [](const char* composition, const PrunerContext& context) {
    return make_pruners(composition, context).at(0)->settings();
  };
  CHECK(settings("pyramiddrop", llava)["layers"] == Ids{8, 16, 24});
  CHECK(settings("pyramiddrop(layers=3,keep=0.5)", llava)["layers"] == Ids{3});
  CHECK(settings("pyramiddrop", {4, nullptr, 0})["layers"] == Ids{1, 2, 3});
  CHECK(settings("pyramiddrop", {3, nullptr, 0})["layers"] == Ids{1, 2});
  CHECK(settings("pyramiddrop", {3, nullptr, 0})["keep"] == std::vector<double>{0.25, 0.125});
  CHECK(settings("pyramiddrop", {2, nullptr, 0})["layers"] == Ids{1});
  CHECK_THROWS_WITH_AS(make_pruners("pyramiddrop", {1, nullptr, 0}),
                       "pyramiddrop: no layers are given (its own are for models of 2 and more)", Error);
  CHECK(settings("visionzip", llava)["dominant"] == 54.0 / 576);
  CHECK(settings("visionzip(dominant=54,contextual=10)", qwen)["contextual"] == 10);
  CHECK(settings("vscan", qwen)["layers"] == Ids{18});
  CHECK(settings("vscan", llava)["layers"].empty());
  CHECK(settings("vscan(layers=2+4,layer-keep=0.5+0.5)", qwen)["layer_keep"] ==
        std::vector<double>{0.5, 0.5});
  CHECK(make_pruners("vscan(layers=2+4,layer_keep=0.5+0.5)+glimpse", {28, std::make_shared<GlimpseModules>()})
            .size() == 2);
  const auto error = [&](const char* composition, const char* message) {
    CHECK_THROWS_WITH_AS(make_pruners(composition, qwen), message, Error);
  };
  error("pyramiddrop(layers=3+2+9)", "pyramiddrop: the layers must ascend");
  error("pyramiddrop(layers=3)", "pyramiddrop: 1 layers but 3 fractions to keep");
  error("pyramiddrop(layers=none,keep=none)",
        "pyramiddrop: no layers are given (its own are for models of 2 and more)");
  error("vscan(layers=none)", "vscan: 0 layers but 1 fractions to keep");
  error("pyramiddrop(layers=8+x+9)", "pyramiddrop: layers: expected a list of numbers, got \"8+x+9\"");
  error("pyramiddrop(layers=8+16+28)",
        "pruning: 'pyramiddrop(layers=8+16+28)' cuts at layer 28 but the model has 28 layers");
  error("divprune(keep=0)", "divprune: keep: 0 is outside [1e-09, 1]");
}
