#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace glimpse {

/// What a vision encoder gives for the images of one prompt; N visual tokens, row-major, images one after the
/// other.
struct VisionOutput {
  at::Tensor embeds;               ///< [N, D]: in the language model's space
  std::vector<at::Tensor> states;  ///< [N, Dv] each: the tapped encoder layers
  at::Tensor windows;              ///< [N] int64: which encoder attention window a token is in
};

}  // namespace glimpse
