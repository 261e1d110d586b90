#pragma once

#include <ATen/ATen.h>

#include <span>
#include <vector>

namespace glimpse {

/// A weight [n, k] and, perhaps, a bias [n] of its type.
struct DenseWeight {
  at::Tensor weight, bias;
};

/// Products of x [m, k] with several weights on the CPU, by our own kernels: [m, n] each, in x's type. x is
/// prepared once and the work of all is shared among the threads together. bf16 or float32; up to
/// kernels::max_rows rows, which are read at memory speed, or any number of bf16 rows (nn/gemm.h). With
/// `pairs`, bf16 is multiplied in pairs where gemm::has_pairs().
std::vector<at::Tensor> dense_products(const at::Tensor& x, std::span<const DenseWeight> weights, bool pairs);

}  // namespace glimpse
