#include "glimpse/models/vision.h"

#include <algorithm>

namespace glimpse {

size_t VisionOutput::bytes() const {
  size_t sum = 0;
  for_tensors(*this, [&](const std::string&, const at::Tensor& tensor) {
    if (tensor.defined()) sum += tensor.nbytes();
  });
  return sum;
}

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
  std::vector<int64_t> last;
  int64_t windows = 0;
  for (const VisionOutput& part : parts) {
    for (size_t i = 0; i < part.windows.size(); ++i) {
      const bool class_token = i + static_cast<size_t>(class_tokens) >= part.windows.size();
      (class_token ? last : out.windows).push_back(part.windows[i] + windows);
    }
    windows += 1 + *std::max_element(part.windows.begin(), part.windows.end());
  }
  out.windows.insert(out.windows.end(), last.begin(), last.end());
  for (size_t i = 0; i < parts[0].states.size(); ++i)
    out.states.push_back(all([&](const VisionOutput& part) { return part.states[i]; }));
  for (size_t i = 0; i < parts[0].attention.size(); ++i)
    out.attention.push_back({all([&](const VisionOutput& part) { return part.attention[i].received; }),
                             all([&](const VisionOutput& part) { return part.attention[i].keys; })});
  for (size_t layer = 0; layer < parts[0].additions.size(); ++layer)
    out.additions.push_back(all([&](const VisionOutput& part) { return part.additions[layer]; }));
  std::vector<at::Tensor> structure;
  for (const VisionOutput& part : parts)
    if (part.structure.defined()) structure.push_back(part.structure);
  if (!structure.empty()) out.structure = at::cat(structure);
  return out;
}

}  // namespace glimpse
