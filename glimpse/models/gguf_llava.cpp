#include "glimpse/models/config.h"
#include "glimpse/models/gguf_parts.h"
#include "glimpse/models/gguf_tensors.h"
#include "glimpse/models/source.h"
#include "glimpse/text/metaspace.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

// The config of LLaVA's original layout, with the encoder's inside.
json llava_config(const Gguf& text, const Gguf& vision) {
  const json &meta = text.metadata(), &clip = vision.metadata();
  const auto number = [&](const char* key) { return need<int64_t>(meta, key, text.file()); };
  const auto of_clip = [&](const char* key) { return need<int64_t>(clip, key, vision.file()); };
  const json scaling = rope_scaling_of(text, "llama");
  const Gguf::Entry& embedding = entry_of(text, "token_embd.weight");
  json config = {{"model_type", "llava_llama"},
                 {"hidden_size", number("llama.embedding_length")},
                 {"intermediate_size", number("llama.feed_forward_length")},
                 {"num_hidden_layers", block_count(text, "llama.block_count")},
                 {"num_attention_heads", number("llama.attention.head_count")},
                 {"rms_norm_eps", need<double>(meta, "llama.attention.layer_norm_rms_epsilon", text.file())},
                 {"rope_theta", meta.value("llama.rope.freq_base", 10000.0)},
                 {"max_position_embeddings", number("llama.context_length")},
                 {"vocab_size", embedding.shape[0]},
                 {"tie_word_embeddings", !text.entries().contains("output.weight")},
                 {"torch_dtype", embedding.type->name == std::string_view("F32") ? "float32" : "bfloat16"},
                 {"eos_token_id", number("tokenizer.ggml.eos_token_id")},
                 {"image_aspect_ratio", "pad"}};
  if (meta.contains("llama.attention.head_count_kv"))
    config["num_key_value_heads"] = number("llama.attention.head_count_kv");
  if (!scaling.empty()) config["rope_scaling"] = scaling;
  // The converter leaves out the last block, whose output LLaVA does not take.
  config["mm_vision_select_layer"] = -2;
  config["vision_config"] = {{"hidden_size", of_clip("clip.vision.embedding_length")},
                             {"intermediate_size", of_clip("clip.vision.feed_forward_length")},
                             {"num_hidden_layers", block_count(vision, "clip.vision.block_count") + 1},
                             {"num_attention_heads", of_clip("clip.vision.attention.head_count")},
                             {"image_size", of_clip("clip.vision.image_size")},
                             {"patch_size", of_clip("clip.vision.patch_size")},
                             {"layer_norm_eps", clip.value("clip.vision.attention.layer_norm_epsilon", 1e-5)},
                             {"hidden_act", clip.value("clip.use_gelu", false) ? "gelu" : "quick_gelu"}};
  return config;
}

json preprocessor_config(const Gguf& vision) {
  const json& meta = vision.metadata();
  const auto size = need<int64_t>(meta, "clip.vision.image_size", vision.file());
  return {{"image_mean", need<std::vector<double>>(meta, "clip.vision.image_mean", vision.file())},
          {"image_std", need<std::vector<double>>(meta, "clip.vision.image_std", vision.file())},
          {"size", {{"shortest_edge", size}}},
          {"crop_size", {{"height", size}, {"width", size}}}};
}

class GgufLlava : public ModelSource {
 public:
  GgufLlava(const Gguf& text, const fs::path& mmproj)
      : mmproj_(mmproj), text_(text), vision_(Gguf::open(mmproj)) {
    check_projector(vision_, "mlp");
    check(member(vision_.metadata(), "clip.vision.feature_layer").is_null() &&
              member(vision_.metadata(), "clip.vision.image_grid_pinpoints").is_null(),
          vision_.file(), ": is of a LLaVA that is none of version 1.5, which is not supported");
    try {
      config_ = llava_config(text_, vision_);
      preprocessor_ = preprocessor_config(vision_);
    } catch (const json::exception& error) {
      fail(text_.file(), " or ", vision_.file(), ": ", error.what());
    }
  }

  fs::path path() const override { return text_.file(); }
  fs::path mmproj() const override { return mmproj_; }
  std::string where(const std::string& file) const override {
    return file == "preprocessor_config.json" ? vision_.file() : text_.file();
  }
  json config() const override { return config_; }
  json settings(const std::string& file) const override {
    return file == "preprocessor_config.json" ? preprocessor_ : json();
  }
  Weights weights(Weights::Rename rename) const override {
    return Weights::lazy(llava_tensors(text_, vision_, config_),
                         concat(text_.file(), " and ", vision_.file()), std::move(rename));
  }
  std::unique_ptr<Tokenizer> tokenizer() const override {
    return with_metadata(text_, [](const json& metadata) {
      return std::make_unique<MetaspaceTokenizer>(parse_metaspace(gguf_metaspace(metadata)));
    });
  }
  void write_companions(const fs::path& dir) const override {
    write_text(dir / "config.json", config_.dump(2));
    write_text(dir / "preprocessor_config.json", preprocessor_.dump(2));
    write_text(dir / "tokenizer.json",
               with_metadata(text_, [](const json& metadata) { return gguf_metaspace(metadata); }).dump());
  }

 private:
  fs::path mmproj_;
  Gguf text_, vision_;
  json config_, preprocessor_;
};

}  // namespace

std::unique_ptr<ModelSource> open_gguf_llava(const Gguf& text, const fs::path& mmproj) {
  return std::make_unique<GgufLlava>(text, mmproj);
}

}  // namespace glimpse
