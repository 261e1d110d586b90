#include "glimpse/prune/compact.h"

#include <algorithm>
#include <stdexcept>

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Ids = std::vector<int64_t>;

namespace {

// A sequence in the middle of its prefill; every cached row holds its own id, so that wrong rows show.
struct Sequence3 {
  LivingRows living;
  KvCache cache;

  Sequence3(int64_t count, const Ids& visual) : living(count, visual, 3), cache(3) {}
  void run(int64_t layer) {
    const at::Tensor ids = at::tensor(living.rows, at::kFloat).view({-1, 1, 1}).expand({-1, 2, 4});
    cache.layers[layer].append(ids, -ids);
    living.cached[layer] = living.rows;
  }
  Ids cut(const Ids& keep, bool trims = true) {
    const at::Tensor stays =
        compact({keep, {}, {}}, {Cut::Place::after, 0, trims}, living, cache).contiguous();
    return {stays.const_data_ptr<int64_t>(), stays.const_data_ptr<int64_t>() + stays.numel()};
  }
  Ids cached(int64_t layer) const {
    const LayerCache& own = cache.layers[layer];
    const at::Tensor ids = own.keys()[0].select(1, 0).to(at::kLong).contiguous();
    CHECK(at::equal(own.keys(), -own.values()));
    const Ids rows(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel());
    CHECK(rows == living.cached[layer]);
    return rows;
  }
};

}  // namespace

TEST_CASE("text rows stay, dropped visual rows leave rows and caches") {
  Sequence3 s(8, {2, 3, 4, 6});
  s.run(0);
  s.run(1);
  CHECK(s.cut({1, 3}) == Ids{0, 1, 3, 5, 6, 7});
  CHECK(s.living.rows == Ids{0, 1, 3, 5, 6, 7});
  CHECK(s.living.visual == Ids{3, 6});
  CHECK(s.living.source == Ids{1, 3});
  CHECK(s.living.visual_positions() == Ids{2, 4});
  CHECK(s.cached(0) == Ids{0, 1, 3, 5, 6, 7});
  CHECK(s.cached(1) == s.cached(0));
  CHECK(s.cache.layers[2].length() == 0);
}

TEST_CASE("several cuts: positions refer to what is left") {
  Sequence3 s(8, {2, 3, 4, 6});
  s.run(0);
  CHECK(s.cut({0, 2, 3}) == Ids{0, 1, 2, 4, 5, 6, 7});
  s.run(1);
  CHECK(s.cut({2}) == Ids{0, 1, 4, 5, 6});
  CHECK(s.living.source == Ids{3});
  CHECK(s.living.rows == Ids{0, 1, 5, 6, 7});
  s.run(2);
  for (int layer = 0; layer < 3; ++layer) CHECK(s.cached(layer) == s.living.rows);
}

TEST_CASE("a cut that leaves the caches alone, then one that does not") {
  Sequence3 s(6, {1, 2, 3});
  s.run(0);
  CHECK(s.cut({2}, false) == Ids{0, 3, 4, 5});
  CHECK(s.cached(0) == Ids{0, 1, 2, 3, 4, 5});
  s.run(1);
  CHECK(s.cached(1) == Ids{0, 3, 4, 5});
  CHECK(s.cut({}, true) == Ids{0, 2, 3});
  CHECK(s.cached(0) == Ids{0, 4, 5});
  CHECK(s.cached(1) == Ids{0, 4, 5});
}

TEST_CASE("selecting nothing and everything") {
  Sequence3 s(6, {0, 2, 5});
  s.run(0);
  const void* memory = s.cache.layers[0].keys().data_ptr();
  CHECK(s.cut({0, 1, 2}) == Ids{0, 1, 2, 3, 4, 5});
  CHECK(s.cache.layers[0].keys().data_ptr() == memory);  // nothing to do, nothing copied
  CHECK(s.cut({}) == Ids{1, 3, 4});
  CHECK(s.living.visual.empty());
  CHECK(s.cached(0) == Ids{1, 3, 4});
  CHECK(s.cut({}) == Ids{0, 1, 2});

  Sequence3 only(2, {0, 1});  // a sequence of visual tokens
  only.run(0);
  CHECK(only.cut({}).empty());
  CHECK(only.cached(0).empty());
}

TEST_CASE("entering after a cut at the encoder's output") {
  const std::vector<Segment> images = {{2, 2, 0}, {1, 3, 4}};
  LivingRows living(11, {1, 2, 3, 4, 6, 7, 8}, 3);
  living.enter({7, 3, 0, 8, 6}, images);  // class token and two patches of the first, then of the second
  CHECK(living.source == Ids{7, 3, 0, 8, 6});
  CHECK(living.visual == Ids{1, 2, 3, 6, 7});
  CHECK(living.rows == Ids{0, 1, 2, 3, 5, 6, 7, 9, 10});
  CHECK(living.visual_positions() == Ids{1, 2, 3, 5, 6});
  for (const Ids& bad : {Ids{4, 0}, Ids{7, 0, 1, 2, 3}}) {  // mixed images; more than the image had
    LivingRows rows(11, {1, 2, 3, 4, 6, 7, 8}, 3);
    CHECK_THROWS_AS(rows.enter(bad, images), std::logic_error);
  }
  CHECK(selected({{2, 0}, {}, {}}, {7, 8, 9}) == Ids{9, 7});
  for (const Ids& bad : {Ids{3}, Ids{-1}, Ids{1, 0, 1}})
    CHECK_THROWS_AS(selected({bad, {}, {}}, {7, 8, 9}), std::logic_error);
  CHECK_THROWS_AS(selected({{0, 1}, at::zeros({3, 2}), {}}, {7, 8, 9}), std::logic_error);
}

TEST_CASE("selections that are a pruner's bug") {
  for (const Ids& bad : {Ids{3}, Ids{-1}, Ids{1, 0}, Ids{0, 0}, Ids{0, 1, 2, 3}}) {
    Sequence3 s(6, {1, 2, 3});
    s.run(0);
    CHECK_THROWS_AS(s.cut(bad), std::logic_error);
    CHECK(s.living.rows.size() == 6);
    CHECK(s.cache.layers[0].length() == 6);
  }
}
