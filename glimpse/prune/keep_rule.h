#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// From one logit per visual token to the kept set (method.md section 4).
struct KeepRule {
  double threshold = 0.5;
  std::optional<double> max_keep;
  std::optional<int64_t> min_keep = 1;
  std::vector<std::string> anchors;

  Fields fields();
  /// Ascending indices of the tokens kept among logits [n] (float32; infinite for given masks). Ranking
  /// breaks ties by the lower index.
  std::vector<int64_t> apply(const at::Tensor& logits) const;
  /// Indices, among the living tokens of `view`, of the anchor corners; none for several images.
  std::vector<int64_t> corners(const View& view) const;
};

/// Indices of the `count` largest values of [n], ascending; ties go to the lower index.
std::vector<int64_t> top_indices(const at::Tensor& values, int64_t count);

/// The union of two ascending lists.
std::vector<int64_t> merge_indices(const std::vector<int64_t>& a, const std::vector<int64_t>& b);

}  // namespace glimpse
