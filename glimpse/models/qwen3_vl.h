#pragma once

#include "glimpse/models/qwen3_vit.h"
#include "glimpse/models/qwen_vl.h"

namespace glimpse {

/// Qwen3-VL (dense): an encoder with DeepStack, Qwen3 decoder with norms of queries and keys and interleaved
/// M-RoPE. Each temporal slice of a video is a segment with a run of video ids of its own, behind its time
/// as text.
class Qwen3Vl : public QwenVl {
 public:
  Qwen3Vl();
  static VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir);
  static std::unique_ptr<Vlm> load(const ModelSource& source, const nlohmann::json& config,
                                   const LoadOptions& options);

  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                     const VisionTaps& taps) const override;
  Rope rope(const at::Tensor& position_ids) const override;
  int64_t vision_depth() const override { return visual_.depth(); }
  int64_t vision_width() const override { return visual_.hidden_size(); }
  /// The first block whose output the language model sees by itself.
  int64_t shallow_block() const override;

 private:
  Qwen3Vit visual_;
  at::Tensor components_;  // [pairs]: what each pair of the rotary embedding turns with
};

}  // namespace glimpse
