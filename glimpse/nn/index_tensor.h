#pragma once

#include <ATen/ATen.h>

#include <initializer_list>
#include <span>
#include <vector>

#include "glimpse/nn/device.h"

namespace glimpse {

/// The values as an int64 tensor on `device`.
inline at::Tensor index_tensor(std::span<const int64_t> values, at::Device device) {
  return to_device(at::tensor(at::IntArrayRef(values.data(), values.size()), at::kLong), device);
}

/// The values of an int64 tensor, which come to the CPU.
inline std::vector<int64_t> list_of(const at::Tensor& indices) {
  const at::Tensor host = indices.cpu().contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

/// Several lists as such tensors, in one copy.
inline std::vector<at::Tensor> index_tensors(std::initializer_list<std::span<const int64_t>> lists,
                                             at::Device device) {
  std::vector<int64_t> all, sizes;
  for (const auto& list : lists) {
    all.insert(all.end(), list.begin(), list.end());
    sizes.push_back(std::ssize(list));
  }
  return index_tensor(all, device).split_with_sizes(sizes);
}

}  // namespace glimpse
