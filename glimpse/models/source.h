#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "glimpse/io/checkpoint.h"
#include "glimpse/text/tokenizer.h"

namespace glimpse {

/// What a model is loaded from: a directory in the Hugging Face layout, or a pair of GGUF files that gives
/// the same things. Settings are the JSON objects of the layout's files, wherever they come from.
class ModelSource {
 public:
  virtual ~ModelSource() = default;

  /// The directory, or the GGUF file of the language model.
  virtual std::filesystem::path path() const = 0;
  /// The GGUF file of the vision encoder; empty for a directory.
  virtual std::filesystem::path mmproj() const { return {}; }
  /// What errors call the part that the layout keeps in `file`.
  virtual std::string where(const std::string& file) const = 0;
  /// config.json. Error when it is missing or no object.
  virtual nlohmann::json config() const = 0;
  /// Another settings file (generation_config.json, preprocessor_config.json); null when there is none.
  virtual nlohmann::json settings(const std::string& file) const = 0;
  /// The weights, their names in the layout's spelling renamed.
  virtual Weights weights(Weights::Rename rename) const = 0;
  /// Null when there is none.
  virtual std::unique_ptr<Tokenizer> tokenizer() const = 0;
  /// Writes to a directory what the layout has beside the weights: configurations, tokenizer, chat template.
  virtual void write_companions(const std::filesystem::path& dir) const = 0;
};

/// A directory in the Hugging Face layout.
std::unique_ptr<ModelSource> open_model_dir(const std::filesystem::path& dir);

/// What `model` means: a .gguf file, a directory, or a hub id (see resolve_model_dir). Beside the first
/// belongs `mmproj`, which, where it is "", is the one file in the same folder that has mmproj in its name.
std::unique_ptr<ModelSource> open_model(const std::string& model, const std::string& mmproj);

}  // namespace glimpse
