#pragma once

#include "glimpse/engine/engine.h"

namespace glimpse {

/// What plain downsampling is called among compared methods: no tokens are chosen, each picture is made so
/// small that it has no more of them than the budget allows. What chooses has to beat it.
constexpr const char* kDownsample = "downsample";

/// The pruners of a compared method; none where that is kDownsample. Errors: those of make_pruners().
PrunerChain compared_pruners(const std::string& method, const PrunerContext& context);

/// A request about smaller pictures, with nothing pruned, and the visual tokens that the pictures have as
/// they are. `side`: pixels of a token's side. Errors: no budget, a video, a model whose pictures all have as
/// many tokens.
struct Downsampled {
  Request request;
  int64_t visual_tokens = 0;
};
Downsampled downsampled(const Request& request, const Vlm& model, int64_t side);

}  // namespace glimpse
