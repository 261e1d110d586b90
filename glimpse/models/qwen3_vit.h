#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/io/checkpoint.h"
#include "glimpse/models/qwen_vit.h"

namespace glimpse {

/// Qwen3-VL's vision encoder: LayerNorm and biases, learned positions that are interpolated to the grid, 2-D
/// rotary, every block over whole frames. A merger joins 2 x 2 patches into one visual token; others like it
/// (DeepStack) make features for the language model's first layers of what some blocks give.
class Qwen3Vit {
 public:
  static Qwen3Vit load(const nlohmann::json& vision_config, const Weights& weights, at::TensorOptions options,
                       const WeightOptions& how = {});

  /// As Qwen25Vit::encoding, over patches [P, 3 * 2 * 16 * 16]. VisionOutput::additions come before the
  /// layers 1, 2, ...
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& images, const VisionTaps& taps) const;

  /// The learned positions of a frame's patches [rows, C] float32, interpolated, from patch `first` of the
  /// grid on, in merge-unit order.
  at::Tensor position_rows(const Grid& grid, int64_t first, int64_t count) const;

  int64_t depth() const { return shape_.depth; }
  int64_t hidden_size() const { return shape_.hidden; }
  /// Blocks whose output goes to the language model's first layers.
  const std::vector<int64_t>& deepstack() const { return deepstack_; }

 private:
  struct Norm {
    at::Tensor weight, bias;
    at::Tensor operator()(const at::Tensor& x) const;
  };
  struct Block {
    Norm norm1, norm2;
    Linear qkv, proj, linear_fc1, linear_fc2;
  };
  struct Merger {
    Norm norm;  // of patches, or of whole units
    Linear linear_fc1, linear_fc2;
    at::Tensor operator()(const at::Tensor& rows, int64_t unit) const;
  };
  class Pass;

  QwenVitShape shape_;
  int64_t side_ = 48;     // of the table of positions
  at::Tensor pos_embed_;  // [side * side, C]
  Linear patch_embed_;
  std::vector<Block> blocks_;
  Merger merger_;
  std::vector<int64_t> deepstack_;
  std::vector<Merger> deepstack_mergers_;
};

}  // namespace glimpse
