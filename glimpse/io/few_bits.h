#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace glimpse {

/// Rows of a matrix in 4 bits: a weight is scale * (what its step stands for) + offset.
struct Steps {
  at::Tensor step;           ///< [rows, in] uint8, from 0 to 15
  at::Tensor scale, offset;  ///< [rows, groups] float32, of the groups of neighbouring inputs
};

/// A matrix [out, in] that a file stores in few bits a value, read some rows at a time, by any thread.
struct FewBits {
  /// Rows [first, first + count) in float32. Errors as for the whole tensor.
  std::function<at::Tensor(int64_t first, int64_t count)> rows;
  int64_t group = 0;  ///< inputs that share scale and offset where 4 bits hold each value; 0: they do not
  at::Tensor table;   ///< [16] uint8, what the steps stand for; undefined: themselves
  std::function<Steps(int64_t first, int64_t count)> steps;  ///< null where `group` is 0
};

/// Matrices of `rows` rows each, one below the other; in steps if all of them have the same.
FewBits stacked(const std::vector<FewBits>& parts, int64_t rows);
/// The matrix whose row r is row place(r) of `from`.
FewBits reordered(const FewBits& from, const std::function<int64_t(int64_t row)>& place);

}  // namespace glimpse
