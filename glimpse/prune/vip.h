#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "glimpse/io/checkpoint.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/rotary.h"

namespace glimpse {

/// Shape of the visual importance predictor.
struct VipConfig {
  enum class Type { v1, v2, dummy } type = Type::v1;
  int64_t attention_size = 0;  ///< heads * selected layers: columns of its input A
  int64_t visual_size = 0;     ///< width of the encoder states
  int64_t fuse_size = 256, cond_size = 512, heads = 4, layers = 4;
  bool deep_supervision = false;
  bool log_softmax_input = false;  ///< A holds log-probabilities rather than logits (matters to the dummy)

  /// Operations of the predictor's products on n visual tokens.
  double operations(double n) const;
};

/// Where each token stands, and which tokens see each other.
struct VipPlaces {
  std::vector<int64_t> row, col;  ///< [n]: place in its image's grid
  std::vector<int64_t> group;     ///< [n]: image, or encoder window
};

/// Visual importance predictor (method.md section 3): attention of the glimpse token + encoder states -> one
/// logit per visual token. Its decisions are thresholds, so it runs in float32, but see use_bf16().
class Vip {
 public:
  /// Takes `attn_fuser.*` from `weights`.
  static Vip load(const VipConfig& config, const Weights& weights, at::Device device);

  /// From now on multiplies and attends in bf16, as modules of a bf16 model were made (method.md section 4),
  /// if the device is faster at that. Sums, norms, what the layers pass on and the logits stay float32. Not
  /// for modules in training.
  void use_bf16();

  /// A [n, attention_size]; states: layers x [n, visual_size] -> logits [outputs, n] float32, the last row
  /// decides (one row unless deep supervision).
  at::Tensor operator()(const at::Tensor& attention, const std::vector<at::Tensor>& states,
                        const VipPlaces& places) const;

  const VipConfig& config() const { return config_; }

 private:
  struct Layer {
    at::Tensor norm1, norm2;
    Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
  };
  at::Tensor dummy(const at::Tensor& attention, const std::vector<int64_t>& group) const;

  VipConfig config_;
  at::ScalarType operands_ = at::kFloat;  ///< type of the layers' products
  Linear attn_in_proj_;
  std::vector<Linear> cond_in_projs_;
  std::vector<Layer> layers_;
  std::vector<Linear> attn_out_projs_;  // of the last layer, or of every layer with deep supervision
};

}  // namespace glimpse
