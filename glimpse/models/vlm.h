#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/image/medium.h"
#include "glimpse/io/checkpoint.h"
#include "glimpse/models/prompt.h"
#include "glimpse/models/source.h"
#include "glimpse/models/vision.h"
#include "glimpse/nn/decoder.h"
#include "glimpse/text/chat.h"
#include "glimpse/text/tokenizer.h"

namespace glimpse {

/// The part of a message that shows it.
inline Part part_of(const Medium& medium) {
  return {is_video(medium) ? Part::Kind::video : Part::Kind::image, {}};
}

/// A text in the space that text and vision encoder share.
struct TextOutput {
  at::Tensor embeds;          ///< [M, P]: one per piece, where the encoder reads long texts in pieces
  std::vector<int64_t> rows;  ///< [M]: that the encoder ran
};

/// The size of a text encoder.
struct TextTower {
  int64_t layers = 0, hidden_size = 0, intermediate_size = 0;
  int64_t width = 0;  ///< P, of the shared space
};

/// How many pixels a picture may be made to have.
struct PixelRange {
  int64_t least = 0, most = 0;
};

/// A vision-language model family: what differs between families, and nothing else.
class Vlm {
 public:
  virtual ~Vlm() = default;

  /// Turns messages and their media (one per part that is no text, in order) into a prompt. Errors: counts or
  /// kinds differ, the family knows no videos, the prompt is longer than the model's context.
  virtual Prompt prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                        const ImageBounds& bounds) const = 0;
  /// A conversation in the family's chat format, each image or video as one token. With
  /// `add_generation_prompt` it ends where the assistant's answer begins. `question`, if not null, receives
  /// the places of the ids that hold what is asked.
  virtual std::vector<int64_t> chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                        std::vector<int64_t>* question) const = 0;
  /// A prompt from ids in which each image or video (in the order of the prompt) has one place, its id once
  /// or already repeated per token.
  virtual Prompt prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const = 0;
  /// The vision encoder before its first step over a prompt's images (at least one); it records what `taps`
  /// ask for.
  virtual std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                             const VisionTaps& taps) const = 0;
  /// Runs all its steps.
  VisionOutput encode(const std::vector<Patches>& patches, const VisionTaps& taps) const;
  /// Brings what the encoder gave [n, Dv] into the language model's space [n, D]. Where the encoder's last
  /// step does so (Qwen2.5-VL's merger) it is there already.
  virtual at::Tensor project(const at::Tensor& embeds) const { return embeds; }
  /// The text encoder whose embeddings share a space with the vision encoder's (VisionTaps::shared), if the
  /// model has one.
  virtual std::optional<TextTower> text_tower() const { return std::nullopt; }
  /// Runs it. May be called from several threads. Error if there is none.
  virtual TextOutput encode_text(const std::string& text) const;
  /// Rotary tables for position_ids [components, T], or [components, S, T] of S sequences.
  virtual Rope rope(const at::Tensor& position_ids) const = 0;

  virtual const Decoder& decoder() const = 0;
  /// The same to be changed: training puts LoRA branches beside its linear layers. Asking for it counts as a
  /// change of the weights.
  Decoder& mutable_decoder() {
    ++weights_version_;
    return const_cast<Decoder&>(decoder());
  }
  /// Changes whenever the weights may have changed: what was made with other weights is not reused.
  uint64_t weights_version() const { return weights_version_; }
  virtual const Tokenizer& tokenizer() const = 0;
  /// Encoder depth and width, as the pruning modules refer to them.
  virtual int64_t vision_depth() const = 0;
  virtual int64_t vision_width() const = 0;
  /// The early encoder block whose attention shows local detail, and whether there is a class token to ask.
  virtual int64_t shallow_block() const = 0;
  virtual bool has_class_token() const = 0;
  virtual int64_t max_positions() const = 0;
  /// What pictures are brought into within `bounds`; nothing where the encoder sees all at sizes of its own,
  /// or the checkpoint does not say how they are prepared. Throws Error for bounds that cannot be had.
  virtual std::optional<PixelRange> pixel_range(const ImageBounds& bounds) const = 0;
  /// Whether messages may show videos: the family knows them, and this checkpoint has what they need.
  virtual bool takes_videos() const { return false; }

 private:
  std::atomic<uint64_t> weights_version_ = 0;
};

/// How to load a model.
struct LoadOptions {
  at::ScalarType dtype = at::kBFloat16;
  at::Device device = at::kCPU;
  std::vector<std::filesystem::path> adapters;  ///< PEFT directories, merged at load
  WeightOptions weights;                        ///< of the linear layers of language model and encoder
  std::filesystem::path clip;                   ///< a whole CLIP beside the model, or ""
  nlohmann::json config_overrides;              ///< a new-modules config: its fields win over the base's
};

/// Loads a model by its config's model_type. Errors name the file and what was expected.
std::unique_ptr<Vlm> load_vlm(const ModelSource& source, const LoadOptions& options);
/// The same for a directory in the Hugging Face layout.
std::unique_ptr<Vlm> load_vlm(const std::filesystem::path& dir, const LoadOptions& options);

/// The checkpoint, the vision encoder's where it is a separate one included, under canonical names: `model.`,
/// `lm_head.` and `visual.`.
Weights open_weights(const ModelSource& source);
Weights open_weights(const std::filesystem::path& dir);
/// Writes to `dir`, a checkpoint with all of these weights, the settings of what the original keeps
/// elsewhere.
void write_parts(const ModelSource& source, const std::filesystem::path& dir);
/// What a new-modules config.json calls a base model of this `model_type`: the reference's class for it.
std::string model_type_with_modules(const std::string& model_type);
/// How the tensors of the model in `dir` are called here, whichever published layout its files use.
Weights::Rename canonical_names(const std::filesystem::path& dir);

/// float32 for a checkpoint saved in it (by its config's torch_dtype), else bf16.
at::ScalarType checkpoint_dtype(const nlohmann::json& config);

}  // namespace glimpse
