#pragma once

#include "glimpse/models/qwen2_5_vit.h"
#include "glimpse/models/qwen_vl.h"

namespace glimpse {

/// Qwen2.5-VL: window-attention vision encoder, Qwen2 decoder with M-RoPE.
class Qwen25Vl : public QwenVl {
 public:
  Qwen25Vl() : QwenVl(Defaults()) {}
  static std::unique_ptr<Vlm> load(const ModelSource& source, const nlohmann::json& config,
                                   const LoadOptions& options);
  static VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir);

  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                     const VisionTaps& taps) const override;
  Rope rope(const at::Tensor& position_ids) const override;
  int64_t vision_depth() const override { return visual_.depth(); }
  int64_t vision_width() const override { return visual_.hidden_size(); }
  int64_t shallow_block() const override { return visual_.first_full_block(); }

 private:
  Qwen25Vit visual_;
};

}  // namespace glimpse
