#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/models/config.h"
#include "glimpse/models/gguf_parts.h"
#include "glimpse/models/gguf_tensors.h"
#include "glimpse/models/source.h"
#include "glimpse/text/byte_level.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;
using Tensors = std::map<std::string, Weights::Lazy>;

// Id of an added token.
int64_t token_id(const Gguf& gguf, const char* token) {
  const json& tokens = member(gguf.metadata(), "tokenizer.ggml.tokens");
  const auto found = std::find(tokens.begin(), tokens.end(), token);
  check(found != tokens.end(), gguf.file(), ": the vocabulary has no token ", token);
  return found - tokens.begin();
}

// What Qwen2's and Qwen3's language models have in common; `architecture` is what its keys begin with.
json text_config(const Gguf& gguf, const std::string& architecture) {
  const json& meta = gguf.metadata();
  const auto key = [&](const char* name) { return architecture + "." + name; };
  const auto number = [&](const char* name) { return need<int64_t>(meta, key(name).c_str(), gguf.file()); };
  const json scaling = rope_scaling_of(gguf, architecture);
  auto sections = need<std::vector<int64_t>>(meta, key("rope.dimension_sections").c_str(), gguf.file());
  check(sections.size() == 3 || (sections.size() == 4 && sections[3] == 0), gguf.file(), ": ",
        key("rope.dimension_sections"), ": expected three sizes, and perhaps 0");
  sections.resize(3);
  const Gguf::Entry& embedding = entry_of(gguf, "token_embd.weight");
  json config = {
      {"hidden_size", number("embedding_length")},
      {"intermediate_size", number("feed_forward_length")},
      {"num_hidden_layers", block_count(gguf, key("block_count").c_str())},
      {"num_attention_heads", number("attention.head_count")},
      {"rms_norm_eps", need<double>(meta, key("attention.layer_norm_rms_epsilon").c_str(), gguf.file())},
      {"rope_theta", meta.value(key("rope.freq_base"), 10000.0)},
      {"rope_scaling", {{"type", "mrope"}, {"mrope_section", sections}}},
      {"max_position_embeddings", number("context_length")},
      {"vocab_size", embedding.shape[0]},
      {"tie_word_embeddings", !gguf.entries().contains("output.weight")},
      {"torch_dtype", embedding.type->name == std::string_view("F32") ? "float32" : "bfloat16"}};
  for (const auto& [to, from] :
       {std::pair{"num_key_value_heads", "attention.head_count_kv"}, {"head_dim", "attention.key_length"}})
    if (meta.contains(key(from))) config[to] = number(from);
  config["rope_scaling"].update(scaling);
  return config;
}

// Of both encoders.
json vision_config(const Gguf& gguf, int64_t out_hidden_size) {
  const json& meta = gguf.metadata();
  const auto number = [&](const char* key) { return need<int64_t>(meta, key, gguf.file()); };
  return {{"depth", block_count(gguf, "clip.vision.block_count")},
          {"hidden_size", number("clip.vision.embedding_length")},
          // Some converters write 0 as clip.vision.feed_forward_length.
          {"intermediate_size", entry_of(gguf, "v.blk.0.ffn_up.weight").shape[0]},
          {"num_heads", number("clip.vision.attention.head_count")},
          {"patch_size", number("clip.vision.patch_size")},
          {"spatial_merge_size", meta.value("clip.vision.spatial_merge_size", int64_t{2})},
          {"temporal_patch_size", 2},
          {"out_hidden_size", out_hidden_size}};
}

json qwen2_5_config(const Gguf& text, const Gguf& vision) {
  const json& meta = vision.metadata();
  json config = text_config(text, "qwen2vl"),
       encoder = vision_config(vision, config["hidden_size"].get<int64_t>());
  config["model_type"] = "qwen2_5_vl";
  // Every this-many-th block sees the whole image.
  const auto pattern = need<int64_t>(meta, "clip.vision.n_wa_pattern", vision.file());
  check(pattern > 0, vision.file(), ": clip.vision.n_wa_pattern is ", pattern);
  json full = json::array();
  for (int64_t block = pattern - 1; block < encoder["depth"].get<int64_t>(); block += pattern)
    full.push_back(block);
  encoder["window_size"] = meta.value("clip.vision.window_size", int64_t{112});
  encoder["fullatt_block_indexes"] = full;
  config["vision_config"] = encoder;
  return config;
}

json qwen3_config(const Gguf& text, const Gguf& vision) {
  json own = text_config(text, "qwen3vl"), encoder = vision_config(vision, own["hidden_size"].get<int64_t>());
  json& rope = own["rope_scaling"];
  if (!scales_rope(rope)) rope["type"] = "default";
  rope["mrope_interleaved"] = true;
  const Gguf::Entry& positions = entry_of(vision, "v.position_embd.weight");
  encoder["num_position_embeddings"] = positions.shape.empty() ? 0 : positions.shape[0];
  encoder["deepstack_visual_indexes"] = deepstack_blocks(vision);
  return {{"model_type", "qwen3_vl"},
          {"tie_word_embeddings", own["tie_word_embeddings"]},
          {"torch_dtype", own["torch_dtype"]},
          {"text_config", own},
          {"vision_config", encoder}};
}

// A pair of files by the language model's architecture.
struct Pair {
  const char *architecture, *projector;
  json (*config)(const Gguf& text, const Gguf& vision);
  Tensors (*tensors)(const Gguf& text, const Gguf& vision);
};
constexpr Pair kPairs[] = {{"qwen2vl", "qwen2.5vl_merger", qwen2_5_config, published_tensors},
                           {"qwen3vl", "qwen3vl_merger", qwen3_config, qwen3_tensors}};

json preprocessor_config(const Gguf& gguf, const json& vision) {
  const json& meta = gguf.metadata();
  json config = {{"image_mean", need<std::vector<double>>(meta, "clip.vision.image_mean", gguf.file())},
                 {"image_std", need<std::vector<double>>(meta, "clip.vision.image_std", gguf.file())},
                 {"patch_size", vision["patch_size"]},
                 {"merge_size", vision["spatial_merge_size"]},
                 {"temporal_patch_size", vision["temporal_patch_size"]}};
  for (const auto& [to, from] : {std::pair{"min_pixels", "clip.vision.image_min_pixels"},
                                 {"max_pixels", "clip.vision.image_max_pixels"}})
    if (meta.contains(from)) config[to] = meta[from];
  return config;
}

json generation_config(const Gguf& gguf) {
  const json& meta = gguf.metadata();
  json ends = json::array();
  const auto add = [&](const json& id) {
    if (!id.is_null() && std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  };
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    add(member(meta, key));
  // The file names one end token, the published generation_config.json both.
  for (const char* token : {"<|im_end|>", "<|endoftext|>"}) add(token_id(gguf, token));
  json config = {{"eos_token_id", ends}};
  for (const auto& [to, from] : {std::pair{"temperature", "general.sampling.temp"},
                                 {"top_p", "general.sampling.top_p"},
                                 {"top_k", "general.sampling.top_k"},
                                 {"repetition_penalty", "general.sampling.penalty_repeat"}})
    if (meta.contains(from)) config[to] = meta[from];
  config["do_sample"] = config.contains("temperature");
  return config;
}

// Writes the tokenizer as Qwen2's files: the words, how they are joined, and the tokens beside them.
void write_tokenizer(const json& metadata, const fs::path& dir) {
  json words = json::object(), added = json::object();
  const ByteLevelData data = parse_gguf_tokenizer(metadata);  // checks them
  const json& tokens = metadata.at("tokenizer.ggml.tokens");
  for (const AddedToken& token : data.added)
    added[std::to_string(token.id)] = {
        {"content", token.content}, {"special", token.special}, {"normalized", token.normalized}};
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!data.vocabulary.bytes(static_cast<int64_t>(id)).empty()) words[tokens[id].get<std::string>()] = id;
  std::string merges = "#version: 0.2";
  for (const json& merge : metadata.at("tokenizer.ggml.merges")) merges += '\n' + merge.get<std::string>();
  write_text(dir / "vocab.json", words.dump());
  write_text(dir / "merges.txt", merges);
  write_text(dir / "tokenizer_config.json",
             json{{"tokenizer_class", "Qwen2Tokenizer"}, {"added_tokens_decoder", added}}.dump(2));
}

class GgufPair : public ModelSource {
 public:
  GgufPair(const Pair& pair, const Gguf& text, const fs::path& mmproj)
      : pair_(pair), mmproj_(mmproj), text_(text), vision_(Gguf::open(mmproj)) {
    check_projector(vision_, pair.projector);
    try {
      config_ = pair.config(text_, vision_);
      config_["image_token_id"] = token_id(text_, "<|image_pad|>");
      config_["video_token_id"] = token_id(text_, "<|video_pad|>");
      preprocessor_ = preprocessor_config(vision_, config_["vision_config"]);
      generation_ = generation_config(text_);
    } catch (const json::exception& error) {
      fail(text_.file(), " or ", vision_.file(), ": ", error.what());
    }
  }

  json config() const override { return config_; }
  fs::path path() const override { return text_.file(); }
  fs::path mmproj() const override { return mmproj_; }
  std::string where(const std::string& file) const override {
    return file == "preprocessor_config.json" ? vision_.file() : text_.file();
  }
  json settings(const std::string& file) const override {
    if (file == "generation_config.json") return generation_;
    return file == "preprocessor_config.json" ? preprocessor_ : json();
  }
  Weights weights(Weights::Rename rename) const override {
    return Weights::lazy(pair_.tensors(text_, vision_), concat(text_.file(), " and ", vision_.file()),
                         std::move(rename));
  }
  std::unique_ptr<Tokenizer> tokenizer() const override {
    return with_metadata(text_, [](const json& metadata) {
      return std::make_unique<ByteLevelTokenizer>(parse_gguf_tokenizer(metadata));
    });
  }
  void write_companions(const fs::path& dir) const override {
    for (const auto& [name, settings] : {std::pair{"config.json", config_},
                                         {"generation_config.json", generation_},
                                         {"preprocessor_config.json", preprocessor_}})
      write_text(dir / name, settings.dump(2));
    with_metadata(text_, [&](const json& metadata) { write_tokenizer(metadata, dir); });
  }

 private:
  const Pair& pair_;
  fs::path mmproj_;
  Gguf text_, vision_;
  json config_, preprocessor_, generation_;
};

}  // namespace

void check_holds_language_model(const Gguf& gguf) {
  const std::string kind = text_of(gguf, "general.architecture");
  check(kind != "clip", gguf.file(),
        " holds a vision encoder: name it with --mmproj, and the language model with --model");
  check(kind == "qwen2vl" || kind == "qwen3vl" || kind == "llama", gguf.file(), ": architecture '", kind,
        "' is not supported (known: qwen2vl, which is Qwen2.5-VL's, qwen3vl, and llama, LLaVA's)");
}

std::unique_ptr<ModelSource> open_gguf_pair(const Gguf& text, const fs::path& mmproj) {
  const std::string kind = text_of(text, "general.architecture");
  for (const Pair& pair : kPairs)
    if (kind == pair.architecture) return std::make_unique<GgufPair>(pair, text, mmproj);
  return open_gguf_llava(text, mmproj);
}

}  // namespace glimpse
