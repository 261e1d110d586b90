#include "glimpse/prune/pyramiddrop.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/shares.h"

namespace glimpse {

void check_stages(const std::vector<int64_t>& layers, const std::vector<double>& fractions,
                  std::string_view owner) {
  check(layers.size() == fractions.size(), owner, ": ", layers.size(), " layers but ", fractions.size(),
        " fractions to keep");
  check(std::adjacent_find(layers.begin(), layers.end(), std::greater_equal<>()) == layers.end(), owner,
        ": the layers must ascend");
}

int64_t stage_of(const std::vector<int64_t>& layers, const Cut& cut) {
  return std::find(layers.begin(), layers.end(), cut.layer) - layers.begin();
}

Fields PyramidDrop::Options::fields() {
  Fields fields;
  fields.add("layers", layers, "cut before these layers, as in 8+16+24", {1, 1e6})
      .add("keep", keep, "fraction of all visual tokens left by each cut, as in 0.5+0.25+0.125", {1e-9, 1});
  return fields;
}

PyramidDrop::PyramidDrop(Options options) : options_(std::move(options)) {
  check(!options_.layers.empty(), "pyramiddrop: no layers are given (its own are for models of 2 and more)");
  check_stages(options_.layers, options_.keep, "pyramiddrop");
}

std::vector<Cut> PyramidDrop::cuts() const {
  std::vector<Cut> cuts;
  for (const int64_t layer : options_.layers)
    cuts.push_back({Cut::Place::before, layer, false, true, Cut::Ahead::with_rope});
  return cuts;
}

// What the budget leaves at a stage; empty if there is none.
Budget PyramidDrop::on_the_way(int64_t stage, int64_t total, const Budget& budget) const {
  const auto target = budget.of(total);
  if (!target) return {};
  const double whole = static_cast<double>(total) / static_cast<double>(std::max<int64_t>(*target, 1));
  const double done = static_cast<double>(stage + 1) / static_cast<double>(options_.layers.size());
  return grown(budget, total, std::pow(whole, 1 - done));
}

Selection PyramidDrop::select(const View& view, const Cut& cut, const Budget& budget) const {
  const int64_t stage = stage_of(options_.layers, cut), total = view.total();
  return {
      top_tokens(view, view.ahead, on_the_way(stage, total, budget), part_of(total, options_.keep[stage])),
      {},
      {}};
}

}  // namespace glimpse
