#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace glimpse {

/// The values as an int64 tensor on `device`.
inline at::Tensor index_tensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

}  // namespace glimpse
