#pragma once

#include <algorithm>

#include "device.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/shares.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"
#include "golden/counts.h"

// Selection functions against a golden case, whose arrays come from a file or from one of several cases in
// it.
namespace glimpse::test {

using Ids = std::vector<int64_t>;

inline std::filesystem::path methods_dir() {
  return golden_dir() / "methods";
}

inline Ids sorted(Ids ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

inline void compare(const std::string& what, const at::Tensor& got, const at::Tensor& expected,
                    double limit) {
  const double d = difference(got, expected);
  limit *= fp32_slack();
  CHECK_MESSAGE(d <= limit, what << ": differs by " << d << ", limit " << limit << ", shape " << got.sizes());
}

void check_merge(const auto& golden, const Assignment& merged, int64_t targets) {
  CHECK(merged.dropped == golden.integers("merge_indices"));
  CHECK(merged.target == golden.integers("merge_target"));
  if (!golden.has("merge_counts")) return;
  Ids counts(targets);
  for (const int64_t target : merged.target) ++counts[target];
  CHECK(counts == golden.integers("merge_counts"));
}

// `scores` and `keys` are those of the patches; `dominant` of them stay.
VisionZipChoice check_visionzip(const auto& golden, const at::Tensor& scores, const at::Tensor& keys,
                                int64_t dominant, int64_t contextual) {
  VisionZipChoice choice = visionzip_choice(scores, keys, dominant, contextual);
  CHECK(choice.dominant == golden.integers("dominant_indices"));
  CHECK(choice.contextual == golden.integers("contextual_indices"));
  check_merge(golden, choice.merged, contextual);
  if (!golden.has("topk_indices")) return choice;
  Ids by_score = choice.dominant;
  const at::Tensor score = scores.cpu().contiguous();
  std::sort(by_score.begin(), by_score.end(),
            [value = score.const_data_ptr<float>()](int64_t a, int64_t b) { return value[a] > value[b]; });
  CHECK(by_score == golden.integers("topk_indices"));
  return choice;
}

void check_vscan(const auto& golden, const Ids& local, const Ids& global, const at::Tensor& features) {
  CHECK(local == sorted(golden.integers("local_indices")));
  CHECK(global == sorted(golden.integers("global_indices")));
  const Ids keep = merge_indices(local, global);
  CHECK(keep == sorted(golden.integers("kept_indices")));
  check_merge(golden, assign(unit_rows(features), others(features.size(0), keep), keep), std::ssize(keep));
  compare("merged", vscan_merge(features, keep), golden["merged"], 2e-4);
}

void check_vscan_llava(const auto& golden, const at::Tensor& shallow, const at::Tensor& deep, int64_t count,
                       const at::Tensor& features) {
  // A square picture, cut into windows of six tokens a side.
  const int64_t tokens = shallow.size(0), side = std::llround(std::sqrt(tokens)),
                windows = vscan_windows(side, side, 6);
  const Ids local = vscan_local(shallow, at::arange(tokens), side, side, 6, count / 2 / windows, count / 2);
  check_vscan(golden, local, vscan_global(deep, local, count - count / 2), features);
}

void check_vscan_qwen(const auto& golden, const at::Tensor& local_scores, const at::Tensor& global_scores,
                      int64_t rows, int64_t cols, double ratio, const at::Tensor& features) {
  const int64_t keep = part_of(rows * cols, ratio), windows = vscan_windows(rows, cols, 4);
  const Ids local = vscan_local(local_scores, at::arange(rows * cols), rows, cols, 4,
                                (keep / 2 + windows - 1) / windows, keep / 2);
  check_vscan(golden, local, vscan_global(global_scores, local, keep - keep / 2), features);
}

}  // namespace glimpse::test
