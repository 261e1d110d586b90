#include "glimpse/io/layout.h"

#include <algorithm>

#include "glimpse/base/check.h"

namespace glimpse {

int64_t checked_numel(at::IntArrayRef shape, std::string_view what) {
  constexpr int64_t kMax = int64_t{1} << 60;
  check(shape.size() <= 64, what, ": ", shape.size(), " dimensions; expected at most 64");
  // A zero size must not hide an overflow of the others: strides are products of the others alone.
  int64_t product = 1;
  for (const int64_t size : shape) {
    check(size >= 0, what, ": negative size in shape ", shape_text(shape));
    check(size <= kMax / product, what, ": shape ", shape_text(shape), " is too large");
    product *= std::max<int64_t>(size, 1);
  }
  return std::find(shape.begin(), shape.end(), 0) != shape.end() ? 0 : product;
}

void check_bools(const void* data, size_t size, std::string_view what) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  check(std::all_of(bytes, bytes + size, [](uint8_t b) { return b <= 1; }), what,
        ": a bool is stored as a byte other than 0 and 1");
}

std::string shape_text(at::IntArrayRef shape) {
  return concat(shape);
}

}  // namespace glimpse
