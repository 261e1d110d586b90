#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string_view>

namespace glimpse {

/// Longest tensor name accepted from a file, in bytes.
inline constexpr size_t kMaxTensorName = 1024;

/// Number of elements of a `shape` read from a file. Error (starting with `what`) on a negative size, more
/// than 64 dimensions, or when the sizes multiply to more than 2^60.
int64_t checked_numel(at::IntArrayRef shape, std::string_view what);

/// Error (starting with `what`) when one of the `size` bytes is no valid bool, i.e. neither 0 nor 1.
void check_bools(const void* data, size_t size, std::string_view what);

/// "[2, 3]".
std::string shape_text(at::IntArrayRef shape);

}  // namespace glimpse
