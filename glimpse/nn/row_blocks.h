#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace glimpse {

/// Rows that run through a layer at once, at most: what a layer makes on its way then needs the same memory
/// for a prompt of any length. An accelerator needs more of them to be busy.
inline int64_t max_block_rows(c10::Device device) {
  return device.is_cpu() ? 2048 : 8192;
}

/// The size of the first of the fewest blocks of at most `most` rows, all about equally large, that `rows`
/// come in. Small remainders would run through kernels made for few rows.
inline int64_t next_block(int64_t rows, int64_t most) {
  const int64_t blocks = (rows + most - 1) / most;
  return blocks > 1 ? (rows + blocks - 1) / blocks : rows;
}

/// Calls f(first, count) for each block of `rows`.
template <class Function>
void for_each_block(int64_t rows, int64_t most, Function f) {
  for (int64_t first = 0, count = 0; first < rows; first += count) {
    count = next_block(rows - first, most);
    f(first, count);
  }
}

}  // namespace glimpse
