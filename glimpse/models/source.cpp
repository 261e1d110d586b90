#include "glimpse/models/source.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/hub_cache.h"
#include "glimpse/io/hub_gguf.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/io/quantization.h"
#include "glimpse/models/config.h"
#include "glimpse/models/gguf_tensors.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr const char* kProcessor = "processor_config.json";

class ModelDir : public ModelSource {
 public:
  explicit ModelDir(fs::path dir) : dir_(std::move(dir)) {}

  fs::path path() const override { return dir_; }
  std::string where(const std::string& file) const override {
    return (dir_ / (nested(file) ? kProcessor : file.c_str())).string();
  }
  json config() const override {
    json config = read_json(dir_ / "config.json");
    check(config.is_object(), where("config.json"), ": expected a JSON object");
    return without_nulls(std::move(config));
  }
  json settings(const std::string& file) const override {
    if (auto settings = nested(file)) return *settings;
    return fs::exists(dir_ / file) ? without_nulls(read_json(dir_ / file)) : json();
  }
  Weights weights(Weights::Rename rename) const override {
    return open_quantized(dir_, Quantization::of(config(), where("config.json")), std::move(rename));
  }
  std::unique_ptr<Tokenizer> tokenizer() const override {
    for (const char* file : {"tokenizer.json", "tokenizer.model", "vocab.json"})
      if (fs::exists(dir_ / file)) return Tokenizer::load(dir_);
    return nullptr;
  }
  void write_companions(const fs::path& dir) const override {
    for (const auto& entry : fs::directory_iterator(dir_)) {
      const std::string name = entry.path().filename().string(), ending = entry.path().extension().string();
      const bool wanted = ending == ".json" || ending == ".txt" || ending == ".model" || ending == ".jinja";
      if (!wanted || name.ends_with(".index.json") || !entry.is_regular_file()) continue;
      std::error_code error;
      fs::copy_file(entry.path(), dir / name, error);
      check(!error, "cannot copy ", entry.path().string(), " to ", dir.string(), ": ", error.message());
    }
  }

 private:
  // transformers 5 writes the settings for images and videos into those of the whole processor; if both files
  // are there these win.
  std::optional<json> nested(const std::string& file) const {
    const char* const part = file == "preprocessor_config.json"         ? "image_processor"
                             : file == "video_preprocessor_config.json" ? "video_processor"
                                                                        : nullptr;
    if (!part || !fs::exists(dir_ / kProcessor)) return {};
    const json processor = read_json(dir_ / kProcessor);
    if (!processor.is_object() || member(processor, part).is_null()) return {};
    return without_nulls(processor.at(part));
  }

  fs::path dir_;
};

bool is_gguf(const fs::path& file) {
  std::string begin(4, '\0');
  std::error_code ignored;
  return fs::is_regular_file(file, ignored) &&
         std::ifstream(file, std::ios::binary).read(begin.data(), 4).good() && begin == "GGUF";
}

/// The one vision encoder beside `model`. Error when there is none or several.
fs::path mmproj_beside(const fs::path& model) {
  std::vector<fs::path> found;
  std::error_code ignored;
  const fs::path folder = model.has_parent_path() ? model.parent_path() : ".";
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename().string().find("mmproj") != std::string::npos && is_gguf(entry.path()))
      found.push_back(entry.path());
  check(!found.empty(), model.string(),
        " holds a language model only; name the file of its vision encoder with --mmproj");
  std::sort(found.begin(), found.end());
  check(found.size() == 1, model.string(), " holds a language model only, and beside it are ", found.size(),
        " vision encoders, such as ", found[0].string(), "; name one with --mmproj");
  return found[0];
}

}  // namespace

std::unique_ptr<ModelSource> open_model_dir(const fs::path& dir) {
  return std::make_unique<ModelDir>(dir);
}

namespace {

// The GGUF files in the cache that a hub id means: of one with a quantisation, or whose repository has no
// other weights.
std::optional<std::pair<fs::path, fs::path>> cached_gguf(const std::string& model) {
  std::error_code ignored;
  const auto id = HubId::parse(model);
  const auto snapshot = id && !fs::exists(model, ignored) ? cached_snapshot(*id) : std::nullopt;
  if (!snapshot || (id->quantisation.empty() && fs::exists(*snapshot / "config.json", ignored))) return {};
  const auto chosen = named("model '" + model + "'",
                            [&] { return choose_gguf(snapshot_files(*snapshot), id->quantisation); });
  check(chosen || id->quantisation.empty(), "model '", model, "': ", snapshot->string(),
        " has no .gguf file; name the model without :", id->quantisation);
  if (!chosen) return {};
  return std::pair(*snapshot / chosen->parts[0],
                   chosen->mmproj.empty() ? fs::path() : *snapshot / chosen->mmproj);
}

}  // namespace

std::unique_ptr<ModelSource> open_model(const std::string& model, const std::string& mmproj) {
  if (const auto cached = cached_gguf(model))
    return open_model(cached->first.string(), mmproj.empty() ? cached->second.string() : mmproj);
  // Such files have any name: what they are is told by their first bytes.
  if (!is_gguf(model)) {
    if (model.ends_with(".gguf")) {
      check_is_file(model);
      fail(model, " is not a GGUF file");
    }
    if (std::error_code ignored; fs::is_regular_file(model, ignored)) check_is_file(model);
    check(mmproj.empty(), "--mmproj belongs to a --model that is a GGUF file, not to '", model, "'");
    return open_model_dir(resolve_model_dir(model));
  }
  const Gguf text = Gguf::open(model);
  check_holds_language_model(text);
  return open_gguf_pair(text, mmproj.empty() ? mmproj_beside(model) : fs::path(mmproj));
}

}  // namespace glimpse
