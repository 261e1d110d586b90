#pragma once

#include <functional>
#include <span>

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// The living tokens of one image, and how many of them to keep.
struct ImageShare {
  ImageSpan image;
  int64_t first = 0, living = 0;  ///< where they stand among the living tokens
  int64_t keep = 0;               ///< at most `living`
  bool budgeted = false;          ///< `keep` is a given budget rather than the method's own rule
  bool class_token = false;       ///< the first of them is the image's class token
};

/// int(ratio * count), as every method but DivPrune and CDPruner rounds.
int64_t part_of(int64_t count, double ratio);
/// The same, but from 1 on `amount` is the number itself.
int64_t count_of(int64_t count, double amount);

/// A budget `factor` (at least 1) times as large, for what a cut leaves to later ones; empty if there is
/// none.
Budget grown(const Budget& budget, int64_t total, double factor);

/// The images of a view with their shares of the budget; without one, own(tokens of the image), at least 1.
std::vector<ImageShare> image_shares(const View& view, const Budget& budget,
                                     const std::function<int64_t(int64_t)>& own);

/// Runs a method that knows one image only on each image by itself. `choose` gives indices among the image's
/// living tokens, ascending.
Selection select_by_image(const View& view, const Budget& budget, const std::function<int64_t(int64_t)>& own,
                          const std::function<Selection(const ImageShare&)>& choose);

/// The living tokens of highest `scores` [n]: `own` of them, at least 1, or what the budget says, image by
/// image if it does.
std::vector<int64_t> top_tokens(const View& view, const at::Tensor& scores, const Budget& budget,
                                int64_t own);

}  // namespace glimpse
