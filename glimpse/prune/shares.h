#pragma once

#include <functional>
#include <span>

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// The living tokens of one segment, and how many of them to keep.
struct SegmentShare {
  Segment segment;
  int64_t first = 0, living = 0;  ///< where they stand among the living tokens
  int64_t keep = 0;               ///< at most `living`
  bool budgeted = false;          ///< `keep` is a given budget rather than the method's own rule
  bool class_token = false;       ///< the first of them is the segment's class token
};

/// The living tokens of one medium, whatever its segments: `living` of them from `first` on.
struct MediumRun {
  int64_t medium = 0, first = 0, living = 0;
};
std::vector<MediumRun> medium_runs(const View& view);

/// int(ratio * count), as every method but DivPrune and CDPruner rounds.
int64_t part_of(int64_t count, double ratio);
/// The same, but from 1 on `amount` is the number itself.
int64_t count_of(int64_t count, double amount);

/// What a cut within the encoder keeps or drops as a whole: of each living token [n] the encoder's window, or
/// the token itself where each picture is one window.
std::vector<int64_t> encoder_units(const View& view);

/// A budget `factor` (at least 1) times as large, for what a cut leaves to later ones; empty if there is
/// none.
Budget grown(const Budget& budget, int64_t total, double factor);

/// The segments of a view with their shares of the budget; without one, own(tokens of the segment), at least
/// 1.
std::vector<SegmentShare> segment_shares(const View& view, const Budget& budget,
                                         const std::function<int64_t(int64_t)>& own);

/// Runs a method that knows one grid only on each segment by itself. `choose` gives indices among its
/// living tokens, ascending.
Selection select_by_segment(const View& view, const Budget& budget,
                            const std::function<int64_t(int64_t)>& own,
                            const std::function<Selection(const SegmentShare&)>& choose);

/// The living tokens of highest `scores` [n]: `own` of them, at least 1, or what the budget says, medium by
/// medium if it does.
std::vector<int64_t> top_tokens(const View& view, const at::Tensor& scores, const Budget& budget,
                                int64_t own);

}  // namespace glimpse
