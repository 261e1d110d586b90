#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "glimpse/nn/kv_cache.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// The rows of one sequence during prefill: which of them are visual, and what each cached row was at the
/// start. Row ids count the prompt's rows from 0. Guide tokens are none of them: no cache holds them.
struct LivingRows {
  std::vector<int64_t> rows;                 ///< row id of each current row, ascending
  std::vector<int64_t> visual;               ///< row id of each living visual token
  std::vector<int64_t> source;               ///< its source index (place_of)
  std::vector<std::vector<int64_t>> cached;  ///< row ids in each layer's cache

  /// `visual_rows`: row ids of the N visual tokens among `count` prompt rows.
  LivingRows(int64_t count, const std::vector<int64_t>& visual_rows, int64_t layers);
  /// Positions of living rows, by id, among the current rows; of the living visual tokens [n].
  std::vector<int64_t> positions(const std::vector<int64_t>& ids) const;
  std::vector<int64_t> visual_positions() const { return positions(visual); }
  /// Makes `tokens` (source indices, segment by segment) the visual tokens that enter the language model:
  /// those of a segment stand, in this order, in the first of its rows.
  void enter(const std::vector<int64_t>& tokens, std::span<const Segment> segments);
};

/// Checks a selection at the encoder's output and gives what it leaves of `tokens`. One that is out of range
/// or repeated is a bug of the pruner (std::logic_error).
std::vector<int64_t> selected(const Selection& selection, const std::vector<int64_t>& tokens);

/// Checks a selection and applies it: shortens `living` and, if the cut says so, the caches of the layers
/// already run. Returns the positions of the rows that stay [T'] int64. A selection that is out of range,
/// unordered or repeated is a bug of the pruner (std::logic_error).
at::Tensor compact(const Selection& selection, const Cut& cut, LivingRows& living, KvCache& cache);

}  // namespace glimpse
