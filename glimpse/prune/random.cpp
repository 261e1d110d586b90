#include "glimpse/prune/random.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "glimpse/prune/shares.h"

namespace glimpse {

Fields RandomPruner::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens to keep", {1e-9, 1})
      .add("seed", seed, "seed of the choice")
      .add("layer", layer, "cut after this layer (-1: before the first)", {-1, 1e6});
  return fields;
}

std::vector<Cut> RandomPruner::cuts() const {
  if (options_.layer < 0) return {{.place = Cut::Place::before, .renumbers = true, .reads_text = false}};
  return {{Cut::Place::after, options_.layer, true}};
}

Taps RandomPruner::taps() const {
  Taps taps;
  taps.pictures = true;
  return taps;
}

Selection RandomPruner::select(const View& view, const Cut&, const Budget& budget) const {
  // The pictures' own values, which no batch, kernel or dtype changes, make the choice differ between
  // pictures.
  std::mt19937_64 generator(static_cast<uint64_t>(options_.seed) ^ view.pictures);
  const auto choose = [&](int64_t living, int64_t count) {
    count = std::min(count, living);
    std::vector<int64_t> order(living);
    std::iota(order.begin(), order.end(), int64_t{0});
    // Fisher-Yates by hand: std::shuffle may differ between standard libraries.
    for (int64_t i = 0; i < count; ++i)
      std::swap(order[i], order[i + static_cast<int64_t>(generator() % static_cast<uint64_t>(living - i))]);
    order.resize(count);
    std::sort(order.begin(), order.end());
    return Selection{order, {}, {}};
  };
  if (!budget.counts.empty())
    return select_by_segment(view, budget, {},
                             [&](const SegmentShare& share) { return choose(share.living, share.keep); });
  Budget own;
  own.keep = options_.keep;
  return choose(view.count(), budget.of(view.total()).value_or(*own.of(view.total())));
}

}  // namespace glimpse
