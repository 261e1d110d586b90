#pragma once

#include "glimpse/image/qwen_image.h"
#include "glimpse/models/mrope.h"
#include "glimpse/models/qwen2_5_vit.h"
#include "glimpse/models/rope_scaling.h"
#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

/// Qwen2.5-VL: window-attention vision encoder, Qwen2 decoder with M-RoPE.
class Qwen25Vl : public Vlm {
 public:
  static std::unique_ptr<Vlm> load(const ModelSource& source, const nlohmann::json& config,
                                   const LoadOptions& options);
  /// The checkpoint under the names of the older of the two published layouts.
  static Weights open_weights(const ModelSource& source, const nlohmann::json& config);
  static std::string canonical_name(std::string_view name);
  static VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir);

  Prompt prompt(const std::vector<Message>& messages, const std::vector<Image>& images,
                const ImageBounds& bounds) const override;
  std::vector<int64_t> chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                std::vector<int64_t>* question) const override;
  Prompt prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const override;
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                     const VisionTaps& taps) const override;
  Rope rope(const at::Tensor& position_ids) const override;
  const Decoder& decoder() const override { return decoder_; }
  const Tokenizer& tokenizer() const override;
  int64_t vision_depth() const override { return visual_.depth(); }
  int64_t vision_width() const override { return visual_.hidden_size(); }
  int64_t shallow_block() const override { return visual_.first_full_block(); }
  bool has_class_token() const override { return false; }
  int64_t max_positions() const override { return rope_.context(); }

 private:
  std::filesystem::path dir_;
  std::unique_ptr<Tokenizer> tokenizer_;           // null for checkpoints without one (golden data)
  std::optional<QwenImageOptions> image_options_;  // none for checkpoints without
  MropeConfig mrope_;
  std::vector<int64_t> mrope_section_;
  RopeScaling rope_;
  Qwen25Vit visual_;
  Decoder decoder_;
};

}  // namespace glimpse
