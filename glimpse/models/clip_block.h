#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <string>

#include "glimpse/io/checkpoint.h"
#include "glimpse/nn/linear.h"

namespace glimpse {

/// How one of CLIP's two towers is built.
struct ClipShape {
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0;
  double norm_eps = 1e-5;
  bool quick_gelu = true;

  /// From vision_config or text_config. What they leave out is as in `defaults`; Error for what is not
  /// supported.
  static ClipShape read(const nlohmann::json& config, ClipShape defaults);
};

/// A number of a CLIP config; Error unless positive.
int64_t clip_number(const nlohmann::json& config, const char* key, int64_t fallback);

/// Where a tower's tensors come from: a checkpoint, the beginning of their names, how to hold them.
struct ClipTensors {
  const Weights& weights;
  std::string root;
  at::TensorOptions options;
  WeightOptions how;

  at::Tensor take(const std::string& name, at::IntArrayRef shape) const {
    return weights.take(root + name, shape, options);
  }
  Linear linear(const std::string& name, int64_t out, int64_t in, bool bias = true) const {
    return take_linear(weights, root + name, out, in, bias, options, how);
  }
};

/// LayerNorm with its parameters.
struct ClipNorm {
  at::Tensor weight, bias;
  double eps = 1e-5;

  static ClipNorm load(const ClipTensors& from, const std::string& name, const ClipShape& shape);
  at::Tensor operator()(const at::Tensor& x) const;
};

/// A pre-norm transformer block with biases, the same in both towers.
struct ClipBlock {
  ClipNorm layer_norm1, layer_norm2;
  Linear q_proj, k_proj, v_proj, out_proj, fc1, fc2;
  int64_t heads = 1;
  bool quick_gelu = true;

  /// Takes `encoder.layers.<index>.*`.
  static ClipBlock load(const ClipTensors& from, int64_t index, const ClipShape& shape);

  /// x [T, D] -> [T, D]. `attend` mixes q, k, v [T, H, d] to [T, D].
  template <class Attend>
  at::Tensor operator()(const at::Tensor& x, Attend attend) const {
    const auto [q, k, v] = linears(layer_norm1(x), q_proj, k_proj, v_proj);
    const auto split = [&](const at::Tensor& wide) { return wide.view({x.size(0), heads, -1}); };
    const at::Tensor attended = x + out_proj(attend(split(q), split(k), split(v)));
    return attended + mlp(layer_norm2(attended));
  }

 private:
  at::Tensor mlp(const at::Tensor& x) const;
};

}  // namespace glimpse
