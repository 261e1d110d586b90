// The pruners that need no trained parts.
#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/prune/random.h"
#include "glimpse/prune/reference.h"
#include "prune/views.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::Views;
using Ids = std::vector<int64_t>;

namespace {

Ids chosen(const Pruner& pruner, const View& view, const Budget& budget = {}) {
  const Selection selection = pruner.select(view, pruner.cuts()[0], budget);
  CHECK(std::is_sorted(selection.keep.begin(), selection.keep.end()));
  CHECK(std::adjacent_find(selection.keep.begin(), selection.keep.end()) == selection.keep.end());
  for (const int64_t index : selection.keep) CHECK((index >= 0 && index < view.count()));
  return selection.keep;
}

ReferencePruner reference(KeepRule rule = {}) {
  return ReferencePruner({std::move(rule), 2});
}

}  // namespace

TEST_CASE("random: a share of all tokens, the same for the same seed") {
  const Views views({{10, 10}, {5, 4}});
  const RandomPruner a({0.25, 1, -1}), b({0.25, 2, -1});
  CHECK(chosen(a, views.view).size() == 30);
  CHECK(chosen(a, views.view) == chosen(RandomPruner({0.25, 1, -1}), views.view));
  CHECK(chosen(a, views.view) != chosen(b, views.view));
  CHECK(chosen(RandomPruner({1.0, 0, -1}), views.view).size() == 120);
  CHECK(chosen(RandomPruner({1e-9, 0, -1}), views.view).size() == 1);
}

TEST_CASE("random: the choice for a seed never changes") {
  const Views views({{4, 4}});
  CHECK(chosen(RandomPruner({0.25, 0, -1}), views.view) == Ids{3, 5, 8, 14});
}

TEST_CASE("random: pictures differ in what they keep, questions do not") {
  Views views({{4, 4}, {4, 4}});
  const RandomPruner pruner({0.25, 0, -1});
  const auto with = [&](float first, float second) {
    views.view.pictures =
        pictures_hash(std::vector<Patches>{{at::full({16, 3}, first), {}}, {at::full({16, 3}, second), {}}});
    return chosen(pruner, views.view);
  };
  const Ids base = with(1, 2);
  CHECK(base == Ids{0, 2, 8, 15, 16, 19, 27, 28});  // the same anywhere
  CHECK(with(1, 2) == base);
  CHECK(with(1, 3) != base);
  CHECK(with(2, 1) != base);
  views.view.text_hidden = at::ones({3, 2});
  CHECK(with(1, 2) == base);
}

TEST_CASE("random: every token has the same chance") {
  const Views views({{2, 5}});
  std::vector<int> count(10);
  for (int64_t seed = 0; seed < 3000; ++seed)
    for (const int64_t token : chosen(RandomPruner({0.3, seed, -1}), views.view)) ++count[token];
  for (const int times : count) CHECK(std::abs(times - 900) < 125);  // five standard deviations
}

TEST_CASE("random: a budget counts all tokens, not the living ones") {
  Views views({{10, 10}});
  const RandomPruner pruner({0.9, 0, -1});
  CHECK(chosen(pruner, views.view, {.keep = 0.2, .count = {}}).size() == 20);
  CHECK(chosen(pruner, views.view, {.keep = {}, .count = 7}).size() == 7);
  std::vector<int64_t> half(50);
  std::iota(half.begin(), half.end(), 0);
  views.set_living(half);
  CHECK(chosen(pruner, views.view, {.keep = 0.2, .count = {}}).size() == 20);
  CHECK(chosen(pruner, views.view, {.keep = 0.8, .count = {}}).size() == 50);
  CHECK(chosen(pruner, views.view, {.keep = {}, .count = 0}).empty());
}

TEST_CASE("random: where it cuts") {
  CHECK(RandomPruner({0.5, 0, -1}).cuts()[0].when() == Moment::before(0));
  CHECK(RandomPruner({0.5, 0, -1}).cuts()[0].renumbers);  // as every cut before the first layer
  CHECK(RandomPruner({0.5, 0, 3}).cuts()[0].when() == Moment::after(3));
  CHECK(RandomPruner({0.5, 4, 3}).settings() == nlohmann::json{{"keep", 0.5}, {"seed", 4}, {"layer", 3}});
}

TEST_CASE("reference: the tokens a box touches, image by image") {
  Views views({{4, 4}, {2, 2}});
  views.set_boxes({{{0.3, 0.3, 0.6, 0.4}}, {{0, 0.5, 0.2, 0.9}}});
  CHECK(chosen(reference(), views.view) == Ids{5, 6, 18});
  views.set_boxes({{{0, 0, 0.1, 0.1}, {0.9, 0.9, 1, 1}}, {}});
  CHECK(chosen(reference({0.5, {}, {}, {}}), views.view) == Ids{0, 15});
  CHECK(chosen(reference({0.5, {}, 1, {}}), views.view) == Ids{0, 15, 16});  // the minimum of each image
  CHECK(chosen(reference({0.5, {}, 3, {}}), views.view) == Ids{0, 1, 15, 16, 17, 18});
}

TEST_CASE("reference: boxes are clipped, caps count per image, anchors stay") {
  Views views({{4, 4}});
  views.set_boxes({{{-3, -3, 5, 5}}});
  CHECK(chosen(reference(), views.view).size() == 16);
  CHECK(chosen(reference({0.5, 0.25, 1, {}}), views.view) == Ids{0, 1, 2, 3});
  views.set_boxes({{{-2, -2, -1, -1}}});
  CHECK(chosen(reference({0.5, {}, 0, {}}), views.view).empty());
  CHECK(chosen(reference({0.5, {}, 0, {"br", "tl"}}), views.view) == Ids{0, 15});
}

TEST_CASE("reference: only living tokens, with their scores") {
  Views views({{2, 3}, {1, 4}});
  views.set_living({1, 4, 6, 9});
  views.set_boxes({{{0.4, 0, 0.5, 0.2}}, {{0.9, 0, 1, 1}}});
  const ReferencePruner pruner = reference();
  CHECK(chosen(pruner, views.view) == Ids{0, 3});
  const Selection selection = pruner.select(views.view, pruner.cuts()[0], {});
  CHECK(at::equal(selection.scores, at::tensor({1.f, 0.f, 0.f, 1.f})));
  views.set_living({4, 5});  // nothing left of the second image
  CHECK(chosen(pruner, views.view) == Ids{0});
}

TEST_CASE("reference: a class token is in no box") {
  Views views({{2, 2}, {2, 2}});
  views.set_living({8, 1, 3, 9, 4, 5});  // of either image: class token, two patches
  views.set_boxes({{whole_image}, {{0, 0, 0.1, 0.1}}});
  CHECK(chosen(reference(), views.view) == Ids{1, 2, 4});
}

TEST_CASE("where tokens stand") {
  const std::vector<Segment> images = {{3, 4, 0}, {2, 5, 12}};
  const auto place = [&](int64_t source) {
    const TokenPlace at = place_of(images, source);
    return Ids{at.segment, at.row, at.col};
  };
  CHECK(place(0) == Ids{0, 0, 0});
  CHECK(place(11) == Ids{0, 2, 3});
  CHECK(place(12) == Ids{1, 0, 0});
  CHECK(place(18) == Ids{1, 1, 1});
  CHECK(place(22) == Ids{0, 1, 2});  // class tokens
  CHECK(place(23) == Ids{1, 1, 2});
}

TEST_CASE("reference: one list of boxes per image") {
  Views views({{2, 2}, {2, 2}});
  const char* message =
      "reference: needs a list of boxes for each of the 2 images, got 0 (--reference-boxes, or bboxs in the "
      "row)";
  CHECK_THROWS_WITH_AS(chosen(reference(), views.view), message, Error);
  views.set_boxes({{}, {}, {}});
  CHECK_THROWS_AS(chosen(reference(), views.view), Error);
  views.set_boxes({{{0, 0, std::nan(""), 1}}, {}});
  CHECK_THROWS_AS(chosen(reference(), views.view), Error);
}
