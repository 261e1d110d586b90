#include "glimpse/prune/compact.h"

#include <algorithm>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

namespace {

// Positions in `from` (ascending) of the entries for which `stays` holds; removes the others.
template <class Predicate>
std::vector<int64_t> filter(std::vector<int64_t>& from, Predicate stays) {
  std::vector<int64_t> positions, left;
  for (size_t i = 0; i < from.size(); ++i)
    if (stays(from[i])) {
      positions.push_back(static_cast<int64_t>(i));
      left.push_back(from[i]);
    }
  from = std::move(left);
  return positions;
}

bool has(const std::vector<int64_t>& ascending, int64_t value) {
  return std::binary_search(ascending.begin(), ascending.end(), value);
}

void check_features(const Selection& selection) {
  invariant(!selection.features.defined() || selection.features.size(0) == std::ssize(selection.keep),
            "a pruner merged into another number of tokens than it kept");
}

}  // namespace

LivingRows::LivingRows(int64_t count, const std::vector<int64_t>& visual_rows, int64_t layers)
    : visual(visual_rows), cached(layers) {
  for (int64_t i = 0; i < count; ++i) rows.push_back(i);
  for (size_t i = 0; i < visual.size(); ++i) source.push_back(static_cast<int64_t>(i));
}

std::vector<int64_t> LivingRows::positions(const std::vector<int64_t>& ids) const {
  std::vector<int64_t> positions;
  for (const int64_t row : ids)
    positions.push_back(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin());
  return positions;
}

void LivingRows::enter(const std::vector<int64_t>& tokens, std::span<const Segment> segments) {
  const std::vector<int64_t> all = std::exchange(visual, {});
  std::vector<int64_t> taken(segments.size());
  for (const int64_t token : tokens) {
    const int64_t segment = place_of(segments, token).segment;
    invariant(taken[segment] < segments[segment].count(), "a pruner kept more tokens than a segment had");
    visual.push_back(all[segments[segment].first + taken[segment]++]);
  }
  invariant(std::is_sorted(visual.begin(), visual.end()), "a pruner mixed the tokens of several segments");
  source = tokens;
  std::erase_if(rows, [&](int64_t row) { return has(all, row) && !has(visual, row); });
}

std::vector<int64_t> selected(const Selection& selection, const std::vector<int64_t>& tokens) {
  check_features(selection);
  std::vector<int64_t> left;
  std::vector<bool> seen(tokens.size());
  for (const int64_t index : selection.keep) {
    invariant(index >= 0 && index < std::ssize(tokens) && !seen[index],
              "a pruner selected a token that is out of range or selected twice");
    seen[index] = true;
    left.push_back(tokens[index]);
  }
  return left;
}

at::Tensor compact(const Selection& selection, const Cut& cut, LivingRows& living, KvCache& cache) {
  check_features(selection);
  std::vector<int64_t> visual, source;
  int64_t previous = -1;
  for (const int64_t index : selection.keep) {
    invariant(index > previous && index < static_cast<int64_t>(living.visual.size()),
              "a pruner selected a token that is out of range, out of order or selected twice");
    visual.push_back(living.visual[index]);
    source.push_back(living.source[index]);
    previous = index;
  }
  const auto dropped_visual = [&](int64_t row) { return has(living.visual, row) && !has(visual, row); };
  const std::vector<int64_t> positions =
      filter(living.rows, [&](int64_t row) { return !dropped_visual(row); });
  // Mostly all layers hold the same rows, so what to keep of them is found once.
  std::vector<int64_t> before, after, kept;
  at::Tensor index;
  for (size_t l = 0; l < living.cached.size(); ++l) {
    std::vector<int64_t>& cached = living.cached[l];
    if (l == 0 || cached != before) {
      before = after = cached;
      kept = filter(after, [&](int64_t row) { return !cut.trims_cache || has(living.rows, row); });
      index.reset();
    }
    if (kept.size() == before.size()) continue;
    if (!index.defined()) index = index_tensor(kept, cache.layers[l].device());
    cached = after;
    cache.layers[l].keep(index);
  }
  living.visual = std::move(visual);
  living.source = std::move(source);
  return at::tensor(positions, at::kLong);
}

}  // namespace glimpse
