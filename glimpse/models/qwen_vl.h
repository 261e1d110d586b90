#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/image/qwen_image.h"
#include "glimpse/models/mrope.h"
#include "glimpse/models/rope_scaling.h"
#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

/// What Qwen's vision-language models have in common: names, chat format, images and videos of whole merge
/// units and positions of three components.
class QwenVl : public Vlm {
 public:
  /// The checkpoint under the names of Qwen2.5-VL's older published layout.
  static Weights open_weights(const ModelSource& source, const nlohmann::json& config);
  static std::string canonical_name(std::string_view name);
  /// The numbers that all configs of these encoders have.
  static VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir);

  Prompt prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                const ImageBounds& bounds) const override;
  Prompt prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const override;
  std::vector<int64_t> chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                std::vector<int64_t>* question) const override;
  const Decoder& decoder() const override { return decoder_; }
  const Tokenizer& tokenizer() const override;
  bool has_class_token() const override { return false; }
  int64_t max_positions() const override { return rope_.context(); }
  std::optional<PixelRange> pixel_range(const ImageBounds& bounds) const override;
  bool takes_videos() const override;

 protected:
  /// What a family does not say in its config.json.
  struct Defaults {
    double rope_theta = 1e6;
    int64_t max_positions = 32768;
    QwenImageOptions image;
    bool system_message = true;  ///< of conversations without one
    bool interleaved = false;    ///< rotary embedding (interleaved_components)
    bool slices_apart = false;   ///< each of a video's slices has a place of its own behind its time as text
    bool evaluated = true;       ///< whether there is a published evaluation with a preprocessing of its own
  };
  explicit QwenVl(Defaults defaults)
      : defaults_(std::move(defaults)), chat_(defaults_.system_message, defaults_.slices_apart) {}

  /// Reads what the config says of positions, windows into `shape`; `text` is its part for the language
  /// model.
  void read_positions(const nlohmann::json& text, const nlohmann::json& config, DecoderConfig& shape,
                      const ModelSource& source, at::Device device);
  /// Reads the tokenizer, and how images and videos are prepared for the encoder of `vision`.
  void read_parts(const ModelSource& source, const nlohmann::json& vision);

  std::filesystem::path dir_;
  MropeConfig mrope_;
  std::vector<int64_t> mrope_section_;
  RopeScaling rope_;
  Decoder decoder_;

 private:
  /// How pictures are prepared within `bounds`. Throws Error for bounds that cannot be had.
  QwenImageOptions image_options(const ImageBounds& bounds) const;

  const Defaults defaults_;
  const QwenChat chat_;
  std::unique_ptr<Tokenizer> tokenizer_;  // null for checkpoints without one (golden data)
  std::optional<QwenImageOptions> image_options_, video_options_;  // none for checkpoints without
};

}  // namespace glimpse
