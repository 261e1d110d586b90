#include "glimpse/models/vision.h"

namespace glimpse {

std::vector<int64_t> tapped_blocks(const VisionTaps& taps, int64_t count) {
  std::vector<int64_t> blocks;
  for (const VisionAttentionTap& tap : taps.attention) {
    check(tap.block >= -1 && tap.block < count, "encoder: the attention of block ", tap.block,
          " was asked for, but only ", count, " blocks run");
    blocks.push_back(tap.block == -1 ? count - 1 : tap.block);
  }
  return blocks;
}

}  // namespace glimpse
