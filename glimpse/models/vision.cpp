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

VisionOutput joined(const std::vector<VisionOutput>& parts, int64_t class_tokens) {
  const auto all = [&](const auto& member) {
    std::vector<at::Tensor> tensors, last;
    for (const VisionOutput& part : parts) {
      const at::Tensor own = member(part);
      if (!own.defined()) return own;
      tensors.push_back(own.narrow(0, 0, own.size(0) - class_tokens));
      last.push_back(own.narrow(0, own.size(0) - class_tokens, class_tokens));
    }
    tensors.insert(tensors.end(), last.begin(), last.end());
    return at::cat(tensors);
  };
  VisionOutput out;
  out.embeds = all([](const VisionOutput& part) { return part.embeds; });
  out.shared = all([](const VisionOutput& part) { return part.shared; });
  int64_t windows = 0;
  out.windows = all([&](const VisionOutput& part) {
    const at::Tensor own = part.windows + windows;
    windows = own.max().item<int64_t>() + 1;
    return own;
  });
  for (size_t i = 0; i < parts[0].states.size(); ++i)
    out.states.push_back(all([&](const VisionOutput& part) { return part.states[i]; }));
  for (size_t i = 0; i < parts[0].attention.size(); ++i)
    out.attention.push_back({all([&](const VisionOutput& part) { return part.attention[i].received; }),
                             all([&](const VisionOutput& part) { return part.attention[i].keys; })});
  return out;
}

}  // namespace glimpse
