#include "glimpse/models/vision_shape.h"

#include "glimpse/models/qwen2_5_vit.h"

namespace glimpse {

std::vector<int64_t> VisionShape::windows(const Grid& grid) const {
  return vit_windows({grid}, merge, window_tokens).window_lengths;
}

}  // namespace glimpse
