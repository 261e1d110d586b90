#include "glimpse/prune/shares.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "glimpse/prune/keep_rule.h"

namespace glimpse {

int64_t part_of(int64_t count, double ratio) {
  return static_cast<int64_t>(static_cast<double>(count) * ratio);
}

int64_t count_of(int64_t count, double amount) {
  return amount < 1 ? part_of(count, amount) : static_cast<int64_t>(amount);
}

std::vector<int64_t> encoder_units(const View& view) {
  std::vector<int64_t> units;
  for (const int64_t token : view.living) units.push_back(view.windows[token]);
  const std::set<int64_t> windows(units.begin(), units.end());
  return windows.size() > view.segments.size() ? units : view.living;
}

Budget grown(const Budget& budget, int64_t total, double factor) {
  const auto grow = [&](int64_t count) {
    return static_cast<int64_t>(
        std::min(std::round(static_cast<double>(count) * factor), static_cast<double>(total)));
  };
  Budget out;
  if (const auto count = budget.of(total)) out.count = grow(*count);
  for (const int64_t count : budget.counts) out.counts.push_back(grow(count));
  return out;
}

std::vector<MediumRun> medium_runs(const View& view) {
  std::vector<MediumRun> runs;
  for (int64_t medium = 0; medium < media_count(view.segments); ++medium) {
    const int64_t first = runs.empty() ? 0 : runs.back().first + runs.back().living;
    int64_t end = first;
    while (end < view.count() &&
           view.segments[place_of(view.segments, view.living[end]).segment].medium == medium)
      ++end;
    runs.push_back({medium, first, end - first});
  }
  return runs;
}

std::vector<SegmentShare> segment_shares(const View& view, const Budget& budget,
                                         const std::function<int64_t(int64_t)>& own) {
  const auto given = budget.of(view.segments);
  std::vector<SegmentShare> shares;
  int64_t first = 0;
  for (const Segment& segment : view.segments) {
    const int64_t i = std::ssize(shares);
    int64_t last = first;
    while (last < view.count() && place_of(view.segments, view.living[last]).segment == i) ++last;
    const int64_t wanted = given ? (*given)[i] : std::max<int64_t>(own(segment.count()), 1);
    shares.push_back({segment, first, last - first, std::clamp<int64_t>(wanted, 0, last - first),
                      given.has_value(), last > first && view.living[first] >= view.total()});
    first = last;
  }
  return shares;
}

Selection select_by_segment(const View& view, const Budget& budget,
                            const std::function<int64_t(int64_t)>& own,
                            const std::function<Selection(const SegmentShare&)>& choose) {
  Selection out;
  std::vector<at::Tensor> features;
  for (const SegmentShare& share : segment_shares(view, budget, own)) {
    const Selection chosen = choose(share);
    for (const int64_t index : chosen.keep) out.keep.push_back(share.first + index);
    if (chosen.features.defined()) features.push_back(chosen.features);
  }
  if (!features.empty()) out.features = at::cat(features);
  return out;
}

std::vector<int64_t> top_tokens(const View& view, const at::Tensor& scores, const Budget& budget,
                                int64_t own) {
  if (budget.counts.empty())
    return top_indices(scores, budget.of(view.total()).value_or(std::max<int64_t>(own, 1)));
  budget.of(view.segments);  // a count for every medium, or an error
  const at::Tensor own_scores = scores.cpu();
  std::vector<int64_t> keep;
  for (const MediumRun& run : medium_runs(view))
    for (const int64_t index :
         top_indices(own_scores.narrow(0, run.first, run.living), budget.counts.at(run.medium)))
      keep.push_back(run.first + index);
  return keep;
}

}  // namespace glimpse
