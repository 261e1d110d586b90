#pragma once

#include <functional>
#include <mutex>

#include "glimpse/image/clip_image.h"
#include "glimpse/models/clip.h"
#include "glimpse/models/clip_text.h"
#include "glimpse/models/clip_tiles.h"
#include "glimpse/models/llava_settings.h"
#include "glimpse/models/rope_scaling.h"
#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

/// LLaVA-1.5: CLIP encoder, a projector of two layers, LLaMA with plain RoPE. Both published layouts: the
/// original (`model.mm_projector`, the encoder in a checkpoint of its own) and Hugging Face's conversion.
class Llava : public Vlm {
 public:
  /// Of LLaVA-NeXT's checkpoints too (models/llava_next.h).
  static std::unique_ptr<Vlm> load(const ModelSource& source, const nlohmann::json& config,
                                   const LoadOptions& options);
  /// Canonical name of a tensor, whichever of the published layouts its file uses.
  static std::string canonical_name(std::string_view name);
  /// The checkpoint, and the encoder's if `dir` does not hold it, as `model.*`, `lm_head.*`,
  /// `visual.vision_model.*` and `visual.projector.{0,2}.*`.
  static Weights open_weights(const ModelSource& source, const nlohmann::json& config);

  static VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir);
  /// The encoder's settings, where the original layout keeps it apart: in a folder of `dir`, where they are
  /// found first.
  static void write_parts(const ModelSource& source, const std::filesystem::path& dir);

  const Decoder& decoder() const override { return decoder_; }
  const Tokenizer& tokenizer() const override;
  int64_t vision_depth() const override { return visual_.last_state() + 1; }
  int64_t vision_width() const override { return visual_.hidden_size(); }
  int64_t shallow_block() const override { return 5 * visual_.depth() / 24; }  // 5 in CLIP-L's 24 (VScan)
  bool has_class_token() const override { return true; }
  int64_t max_positions() const override { return rope_.context(); }
  std::optional<PixelRange> pixel_range(const ImageBounds& bounds) const override;

  Prompt prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                const ImageBounds& bounds) const override;
  std::vector<int64_t> chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                std::vector<int64_t>* question) const override;
  Prompt prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const override;
  std::optional<TextTower> text_tower() const override { return text_tower_; }
  TextOutput encode_text(const std::string& text) const override;
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                     const VisionTaps& taps) const override;
  at::Tensor project(const at::Tensor& embeds) const override;
  Rope rope(const at::Tensor& position_ids) const override;

 protected:
  // What LLaVA-NeXT does otherwise: how pictures are prepared, which grids their tokens are in, where these
  // come from among the encoder's tokens, and what a checkpoint has for that.
  virtual Patches patches_of(const Image& image) const;
  virtual std::vector<TokenGrid> grids_of(const Patches& image) const;
  virtual std::vector<TilePart> parts_of(const Patches& image) const;
  virtual void find_parts(const Weights&, const LlavaSettings&, int64_t /*hidden_size*/, at::TensorOptions) {}

  const ClipVit& visual() const { return visual_; }
  const std::optional<ClipImageOptions>& image_options() const { return image_options_; }

 private:
  std::filesystem::path dir_;
  std::unique_ptr<Tokenizer> tokenizer_;  // null for checkpoints without one (golden data)
  std::unique_ptr<ChatFormat> format_;
  std::optional<ClipImageOptions> image_options_;  // none for checkpoints without
  ImagePlace place_;
  RopeScaling rope_;
  ClipVit visual_;
  Linear projector_0_, projector_2_;
  Decoder decoder_;

  // The text tower is large, so that it is loaded when it is first asked for.
  const ClipText& clip() const;
  void find_text_tower(const ModelSource& source, const nlohmann::json& config, const LoadOptions& options);
  std::optional<TextTower> text_tower_;
  std::function<ClipText()> load_clip_;
  mutable std::once_flag clip_is_loaded_;
  mutable std::optional<ClipText> clip_;
};

}  // namespace glimpse
