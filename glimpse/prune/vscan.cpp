#include "glimpse/prune/vscan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/pyramiddrop.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

Fields VScan::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens that enter the language model", {1e-9, 1})
      .add("shallow", shallow, "encoder block of the local half", {0, 1e6})
      .add("window", window, "side of a local window, in tokens", {1, 1e6})
      .add("rotate_twice", rotate_twice,
           "apply the encoder's rotary embedding twice for the scores, as the published evaluation does")
      .add("whole_shares", whole_shares, "round a window's share down: the local half may come out smaller")
      .add("layers", layers, "cut again before these layers, as in 14+20 (none: not at all)", {1, 1e6})
      .add("layer_keep", layer_keep, "fraction of the living visual tokens left by each of these cuts",
           {1e-9, 1})
      .add("layer_rope", layer_rope, "use the rotary embedding in these cuts' scores");
  return fields;
}

VScan::VScan(Options options) : options_(std::move(options)) {
  check_stages(options_.layers, options_.layer_keep, "vscan");
}

std::vector<Cut> VScan::cuts() const {
  std::vector<Cut> cuts = {{.place = Cut::Place::before, .renumbers = true, .reads_text = false}};
  for (const int64_t layer : options_.layers)
    cuts.push_back({Cut::Place::before, layer, false, true,
                    options_.layer_rope ? Cut::Ahead::with_rope : Cut::Ahead::without_rope});
  return cuts;
}

Taps VScan::taps() const {
  Taps taps;
  taps.vision_attention = {{options_.shallow, options_.rotate_twice}, {-1, options_.rotate_twice}};
  return taps;
}

int64_t vscan_windows(int64_t rows, int64_t cols, int64_t side) {
  return std::max<int64_t>(rows / side, 1) * std::max<int64_t>(cols / side, 1);
}

std::vector<int64_t> vscan_local(const at::Tensor& scores, const at::Tensor& places, int64_t rows,
                                 int64_t cols, int64_t side, int64_t share, int64_t count) {
  const at::Tensor score = scores.to(at::kCPU, at::kFloat).nan_to_num(0).contiguous();
  const at::Tensor place = places.to(at::kCPU, at::kLong).contiguous();
  const int64_t down = std::max<int64_t>(rows / side, 1), across = std::max<int64_t>(cols / side, 1);
  std::vector<int64_t> order(score.numel()), used(down * across), keep;
  std::iota(order.begin(), order.end(), int64_t{0});
  const float* value = score.const_data_ptr<float>();
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return value[a] > value[b]; });
  for (const int64_t token : order) {
    if (static_cast<int64_t>(keep.size()) >= count) break;
    const int64_t at = place.const_data_ptr<int64_t>()[token];
    const int64_t row = std::min(at / cols / side, down - 1), col = std::min(at % cols / side, across - 1);
    if (used[row * across + col]++ < share) keep.push_back(token);
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

std::vector<int64_t> vscan_global(const at::Tensor& scores, const std::vector<int64_t>& local,
                                  int64_t count) {
  const at::Tensor taken = at::tensor(local, at::kLong);
  const at::Tensor free = scores.to(at::kCPU, at::kFloat)
                              .nan_to_num(0)
                              .index_fill(0, taken, -std::numeric_limits<float>::infinity());
  return top_indices(free, std::min(count, scores.size(0) - taken.size(0)));
}

at::Tensor vscan_merge(const at::Tensor& features, const std::vector<int64_t>& keep) {
  const at::Tensor kept = rows_of(features, keep).to(at::kFloat);
  if (keep.empty()) return kept;
  const Assignment merged = assign(unit_rows(features), others(features.size(0), keep), keep);
  const Assigned assigned = sum_assigned(features, merged, kept.size(0));
  return (kept + assigned.sum) / (assigned.count + 1);
}

Selection VScan::at_encoder(const View& view, const Budget& budget) const {
  const auto own = [&](int64_t n) { return part_of(n, options_.keep); };
  std::vector<int64_t> grid;  // each token's index in its image's grid
  for (const TokenPlace& place : view.places())
    grid.push_back(place.row * view.segments[place.segment].cols + place.col);
  const at::Tensor places = at::tensor(grid, at::kLong);
  return select_by_segment(view, budget, own, [&](const SegmentShare& share) {
    const auto mine = [&](const at::Tensor& t) { return t.narrow(0, share.first, share.living); };
    const auto scores = [&](int64_t tap) {
      return mine(view.vision_attention[tap].received.index_select(0, view.index));
    };
    const Segment& segment = share.segment;
    const int64_t windows = vscan_windows(segment.rows, segment.cols, options_.window), half = share.keep / 2;
    const bool down = options_.whole_shares && !share.budgeted;
    const int64_t quota = down ? half / windows : (half + windows - 1) / windows;
    Selection out;
    const std::vector<int64_t> local =
        vscan_local(scores(0), mine(places), segment.rows, segment.cols, options_.window, quota, half);
    const int64_t rest = share.keep - (down ? half : static_cast<int64_t>(local.size()));
    out.keep = merge_indices(local, vscan_global(scores(1), local, rest));
    out.features = vscan_merge(mine(view.hidden), out.keep);
    return out;
  });
}

// Which of the cuts inside the language model, -1: the encoder's.
int64_t VScan::stage(const Cut& cut) const {
  return cut.layer == 0 ? -1 : stage_of(options_.layers, cut);
}

// A budget for what a stage leaves, so that the later ones end at `budget`.
Budget VScan::before_later_cuts(int64_t stage, int64_t total, const Budget& budget) const {
  double later = 1;
  for (auto i = stage + 1; i < std::ssize(options_.layers); ++i) later *= options_.layer_keep[i];
  return grown(budget, total, 1 / std::max(later, 1e-9));
}

Selection VScan::select(const View& view, const Cut& cut, const Budget& budget) const {
  const int64_t at = stage(cut);
  const Budget now = before_later_cuts(at, view.total(), budget);
  if (at < 0) return at_encoder(view, now);
  return {top_tokens(view, view.ahead, now, part_of(view.count(), options_.layer_keep[at])), {}, {}};
}

double VScan::operations(const Cut& cut, const CutSizes& sizes) const {
  if (stage(cut) >= 0) return 0;
  const auto kept = static_cast<double>(sizes.kept);
  return 2 * (static_cast<double>(sizes.living) - kept) * kept * static_cast<double>(sizes.width);
}

}  // namespace glimpse
