#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "glimpse/nn/device.h"

namespace glimpse {

/// The values as an int64 tensor on `device`.
inline at::Tensor index_tensor(const std::vector<int64_t>& values, at::Device device) {
  return to_device(at::tensor(values, at::kLong), device);
}

}  // namespace glimpse
