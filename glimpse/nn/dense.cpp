#include "glimpse/nn/dense.h"

#include <ATen/Parallel.h>

#include "glimpse/nn/gemm.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"

namespace glimpse {

namespace {

int64_t parts_of(int64_t all, int64_t part) {
  return (all + part - 1) / part;
}

std::vector<at::Tensor> empty_results(const at::Tensor& x, std::span<const DenseWeight> weights) {
  std::vector<at::Tensor> out;
  for (const DenseWeight& w : weights) out.push_back(at::empty({x.size(0), w.weight.size(0)}, x.options()));
  return out;
}

// Few rows: every weight is read once at memory speed.
std::vector<at::Tensor> few_rows(const at::Tensor& x, std::span<const DenseWeight> weights, bool pairs) {
  const int64_t m = x.size(0), k = x.size(1);
  const at::Tensor typed = pairs ? x : x.to(at::kFloat);
  // Rows whole pages apart would fight for the same lines of the cache.
  const at::Tensor rows = m > 1 ? at::constant_pad_nd(typed, {0, 96}) : typed.contiguous();
  const int64_t ldx = rows.size(1);
  const std::vector<at::Tensor> out = empty_results(x, weights);
  // A multiple of every number of columns that the kernels take at once.
  const int64_t chunk = std::max<int64_t>(24, 131072 / std::max<int64_t>(k, 1) / 24 * 24);
  std::vector<int64_t> counts;
  for (const DenseWeight& w : weights) counts.push_back(parts_of(w.weight.size(0), chunk));
  with_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    parallel_tasks_of(counts, [&](size_t i, int64_t task) {
      thread_local std::vector<float> sums;
      const auto& [weight, bias] = weights[i];
      const int64_t n = weight.size(0), begin = task * chunk, count = std::min(chunk, n - begin);
      sums.resize(m * count);
      const T* const w = element_data<T>(weight) + begin * k;
      if (pairs)
        kernels::dots(element_data<kernels::bf16>(rows), ldx, m, k, reinterpret_cast<const kernels::bf16*>(w),
                      0, count, sums.data(), count);
      else
        kernels::dots(element_data<float>(rows), ldx, m, k, w, 0, count, sums.data(), count);
      const T* const offsets = bias.defined() ? element_data<T>(bias) + begin : nullptr;
      for (int64_t r = 0; r < m; ++r)
        kernels::add_bias(sums.data() + r * count, offsets, count, element_data<T>(out[i]) + r * n + begin);
    });
  });
  return out;
}

// Many rows of bf16 matrices (nn/gemm.h).
std::vector<at::Tensor> many_rows(const at::Tensor& x, std::span<const DenseWeight> weights, bool pairs) {
  const int64_t m = x.size(0), k = x.size(1), blocks = parts_of(m, gemm::block_rows());
  const at::Tensor rows = x.contiguous(),
                   packed = at::empty({gemm::packed_size(m, k, pairs)}, x.options().dtype(at::kFloat));
  const std::vector<at::Tensor> out = empty_results(x, weights);
  float* const to = packed.data_ptr<float>();
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    gemm::pack(element_data<gemm::bf16>(rows), m, k, first, last, pairs, to);
  });
  // Tasks are panels of columns, cut along the rows so that their sums stay in the second-level cache.
  const int64_t down = parts_of(blocks, std::max<int64_t>(1, gemm::panel_rows / gemm::block_rows())),
                height = parts_of(blocks, down);
  std::vector<int64_t> counts;
  std::vector<at::Tensor> biases;
  for (const DenseWeight& w : weights) {
    counts.push_back(parts_of(w.weight.size(0), gemm::panel_columns) * down);
    biases.push_back(w.bias.defined() ? w.bias.to(at::kFloat) : w.bias);
  }
  parallel_tasks_of(counts, [&](size_t i, int64_t task) {
    thread_local std::vector<float> scratch;
    scratch.resize(gemm::scratch_size(height * gemm::block_rows()));
    const int64_t n = weights[i].weight.size(0), column = task / down * gemm::panel_columns,
                  first = task % down * height;
    gemm::panel(to, m, k, first, std::min(first + height, blocks),
                element_data<gemm::bf16>(weights[i].weight),
                biases[i].defined() ? biases[i].const_data_ptr<float>() : nullptr, column,
                std::min(column + gemm::panel_columns, n), n, pairs, element_data<gemm::bf16>(out[i]),
                scratch.data());
  });
  return out;
}

}  // namespace

std::vector<at::Tensor> dense_products(const at::Tensor& x, std::span<const DenseWeight> weights,
                                       bool pairs) {
  if (x.size(0) == 0) return empty_results(x, weights);
  return x.size(0) <= kernels::max_rows ? few_rows(x, weights, pairs) : many_rows(x, weights, pairs);
}

}  // namespace glimpse
