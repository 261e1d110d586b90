#include "glimpse/models/vision_shape.h"

#include "glimpse/models/qwen2_5_vit.h"

namespace glimpse {

Grid VisionShape::frames(int64_t rows, int64_t cols) const {
  const auto whole = [&](int64_t tokens) { return tile > 0 ? (tokens + tile - 1) / tile : 1; };
  const auto side = [&](int64_t tokens) { return static_cast<int>((tile > 0 ? tile : tokens) * merge); };
  return {static_cast<int>(whole(rows) * whole(cols)), side(rows), side(cols)};
}

std::vector<int64_t> VisionShape::windows(const Grid& grid) const {
  return vit_windows({grid}, merge, window_tokens).window_lengths;
}

}  // namespace glimpse
