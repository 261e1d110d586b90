#pragma once

#include <vector>

#include "glimpse/engine/sequence.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

/// What the encoder gave for layers of the language model (VisionOutput::additions), on its way to rows of a
/// batch. `vision` must outlive it.
class AddedFeatures {
 public:
  /// `rows`: of the visual tokens in their sequence.
  AddedFeatures(const VisionOutput& vision, const std::vector<int64_t>& rows, at::Device device)
      : vision_(vision), rows_(index_tensor(rows, device)) {}
  /// Of some visual tokens.
  AddedFeatures(const VisionOutput& vision, const std::vector<int64_t>& rows, at::Device device,
                const std::vector<int64_t>& tokens)
      : AddedFeatures(vision, rows, device) {
    tokens_ = index_tensor(tokens, device);
  }

  /// x [R, D] as it enters the layer, of a sequence whose rows begin at `first`: x itself if nothing is
  /// added.
  at::Tensor added(const at::Tensor& x, int64_t layer, int64_t first) const {
    if (layer >= std::ssize(vision_.additions) || !vision_.additions[layer].defined()) return x;
    const at::Tensor& all = vision_.additions[layer];
    return x.index_add(0, rows_ + first, tokens_.defined() ? all.index_select(0, tokens_) : all);
  }

 private:
  const VisionOutput& vision_;
  at::Tensor rows_, tokens_;
};

}  // namespace glimpse
