#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace glimpse {

/// These rows of x [n, D].
at::Tensor rows_of(const at::Tensor& x, const std::vector<int64_t>& index);

/// Rows of x [n, D] scaled to length one, float32.
at::Tensor unit_rows(const at::Tensor& x);

/// What x has along `dim` at the place `chosen` [1] int64, which need not come to the host: looking at it
/// would wait for the device. On the CPU it costs nothing, and what it picks is not copied.
at::Tensor picked(const at::Tensor& x, int64_t dim, const at::Tensor& chosen);
/// Sets that place of x [n] float32 to `value`.
void strike(at::Tensor& x, const at::Tensor& chosen, float value);

/// Cosines between all rows of unit [n, D]: [n, n] float32. Symmetric blocks are computed once.
at::Tensor cosines(const at::Tensor& unit);

/// The same for a greedy choice, which asks for some of its rows: computed at once for up to `at_once` rows,
/// beyond that one by one, so that memory does not grow with n x n.
class Cosines {
 public:
  static constexpr int64_t most_at_once = 8192;
  explicit Cosines(at::Tensor unit, int64_t at_once = Cosines::most_at_once);
  /// [n] float32: of row i, [1] int64, with each other one; its own place holds no cosine.
  at::Tensor row(const at::Tensor& i) const;
  /// Operations of all of them at once, n rows of width d.
  static double operations(double n, double d);
  /// [n] float32: of each row with the most similar other one.
  at::Tensor nearest() const;

 private:
  at::Tensor unit_, all_;  // all_: [n, n] or undefined
};

/// Dropped tokens, each assigned to a kept one.
struct Assignment {
  std::vector<int64_t> dropped;  ///< tokens
  std::vector<int64_t> target;   ///< for each of them, an index into the targets
};
/// Assigns each of the `dropped` rows of unit [n, D] to the most similar of the rows `targets`; the first of
/// equals. The targets may not be empty.
Assignment assign(const at::Tensor& unit, std::vector<int64_t> dropped, const std::vector<int64_t>& targets);

/// What the targets were assigned, of features [n, D].
struct Assigned {
  at::Tensor sum;    ///< [targets, D] float32
  at::Tensor count;  ///< [targets, 1] float32
};
Assigned sum_assigned(const at::Tensor& features, const Assignment& assignment, int64_t targets);

/// The indices below n that are not in `ascending`.
std::vector<int64_t> others(int64_t n, const std::vector<int64_t>& ascending);

}  // namespace glimpse
