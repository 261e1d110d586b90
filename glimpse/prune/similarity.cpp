#include "glimpse/prune/similarity.h"

#include <algorithm>

#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

namespace {

constexpr int64_t kBlock = 512;
constexpr float kSelf = -2;  // below every cosine

// Of rows from i on with all from i on: block [rows, n - i].
void block_of_cosines(const at::Tensor& unit, int64_t i, at::Tensor& block) {
  flop_count::add(2 * block.numel() * unit.size(1));
  at::mm_out(block, unit.narrow(0, i, block.size(0)), unit.narrow(0, i, block.size(1)).t());
}

}  // namespace

at::Tensor rows_of(const at::Tensor& x, const std::vector<int64_t>& index) {
  return x.index_select(0, index_tensor(index, x.device()));
}

at::Tensor picked(const at::Tensor& x, int64_t dim, const at::Tensor& chosen) {
  return x.is_cpu() ? x.select(dim, *chosen.const_data_ptr<int64_t>())
                    : x.index_select(dim, chosen).squeeze(dim);
}

void strike(at::Tensor& x, const at::Tensor& chosen, float value) {
  if (x.is_cpu())
    x.data_ptr<float>()[*chosen.const_data_ptr<int64_t>()] = value;
  else
    x.index_fill_(0, chosen, value);
}

at::Tensor unit_rows(const at::Tensor& x) {
  at::Tensor wide = x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  return wide.div_(wide.norm(2, 1, true).clamp_min(1e-12));
}

at::Tensor cosines(const at::Tensor& unit) {
  const int64_t n = unit.size(0);
  at::Tensor all = at::empty({n, n}, unit.options());
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t rows = std::min(kBlock, n - i), below = n - i - rows;
    // From the diagonal to the right; what lies below is the mirror image.
    at::Tensor block = all.narrow(0, i, rows).narrow(1, i, n - i);
    block_of_cosines(unit, i, block);
    all.narrow(0, i + rows, below).narrow(1, i, rows).copy_(block.narrow(1, rows, below).t());
  }
  return all;
}

Cosines::Cosines(at::Tensor unit, int64_t at_once) : unit_(std::move(unit)) {
  if (unit_.size(0) > at_once) return;
  all_ = cosines(unit_);
  all_.diagonal().fill_(kSelf);
}

// Blocks on and right of the diagonal.
double Cosines::operations(double n, double d) {
  double sum = 0;
  for (double row = 0; row < n; row += kBlock) sum += 2 * std::min<double>(kBlock, n - row) * (n - row) * d;
  return sum;
}

at::Tensor Cosines::row(const at::Tensor& i) const {
  if (all_.defined()) return picked(all_, 0, i);
  flop_count::add(2 * unit_.numel());
  return at::mv(unit_, picked(unit_, 0, i));
}

at::Tensor Cosines::nearest() const {
  if (all_.defined()) return all_.amax(1);
  const int64_t n = unit_.size(0);
  at::Tensor best = at::full({n}, kSelf, unit_.options());
  const auto raise = [&](int64_t first, const at::Tensor& values) {
    at::Tensor own = best.narrow(0, first, values.size(0));
    at::maximum_out(own, own, values);
  };
  for (int64_t i = 0; i < n; i += kBlock) {
    at::Tensor block = at::empty({std::min(kBlock, n - i), n - i}, unit_.options());
    block_of_cosines(unit_, i, block);
    block.diagonal().fill_(kSelf);
    raise(i, block.amax(1));
    raise(i, block.amax(0));
  }
  return best;
}

Assignment assign(const at::Tensor& unit, std::vector<int64_t> dropped, const std::vector<int64_t>& targets) {
  Assignment out{std::move(dropped), {}};
  if (out.dropped.empty()) return out;
  const at::Tensor candidates = rows_of(unit, targets).t();
  // Made at once: small results between large temporary ones would leave holes in the heap.
  at::Tensor best = at::empty({std::ssize(out.dropped)}, unit.options().dtype(at::kLong));
  for (size_t first = 0; first < out.dropped.size(); first += kBlock) {
    const size_t last = std::min(out.dropped.size(), first + static_cast<size_t>(kBlock));
    const std::vector<int64_t> block(out.dropped.begin() + static_cast<std::ptrdiff_t>(first),
                                     out.dropped.begin() + static_cast<std::ptrdiff_t>(last));
    flop_count::add(2 * std::ssize(block) * candidates.numel());
    at::Tensor own = best.narrow(0, static_cast<int64_t>(first), std::ssize(block));
    at::argmax_out(own, at::mm(rows_of(unit, block), candidates), 1);
  }
  out.target = list_of(best);
  return out;
}

Assigned sum_assigned(const at::Tensor& features, const Assignment& assignment, int64_t targets) {
  const at::TensorOptions wide = features.options().dtype(at::kFloat);
  Assigned out{at::zeros({targets, features.size(1)}, wide), at::zeros({targets, 1}, wide)};
  if (assignment.dropped.empty()) return out;
  const at::Tensor target = index_tensor(assignment.target, features.device());
  out.sum.index_add_(0, target, rows_of(features, assignment.dropped).to(at::kFloat));
  out.count.index_add_(0, target, at::ones({target.size(0), 1}, wide));
  return out;
}

std::vector<int64_t> others(int64_t n, const std::vector<int64_t>& ascending) {
  std::vector<int64_t> out;
  auto next = ascending.begin();
  for (int64_t i = 0; i < n; ++i)
    if (next != ascending.end() && *next == i)
      ++next;
    else
      out.push_back(i);
  return out;
}

}  // namespace glimpse
