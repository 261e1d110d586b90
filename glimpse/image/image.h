#pragma once

#include <cstdint>
#include <vector>

namespace glimpse {

/// A decoded picture.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgb;  ///< [height, width, 3], row-major
};

}  // namespace glimpse
