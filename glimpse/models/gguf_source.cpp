#include <algorithm>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/models/config.h"
#include "glimpse/models/gguf_tensors.h"
#include "glimpse/models/source.h"
#include "glimpse/text/byte_level.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

std::string text_of(const Gguf& gguf, const char* key) {
  const json& value = member(gguf.metadata(), key);
  return value.is_string() ? value.get<std::string>() : "";
}

// Id of an added token.
int64_t token_id(const Gguf& gguf, const char* token) {
  const json& tokens = member(gguf.metadata(), "tokenizer.ggml.tokens");
  const auto found = std::find(tokens.begin(), tokens.end(), token);
  check(found != tokens.end(), gguf.file(), ": the vocabulary has no token ", token);
  return found - tokens.begin();
}

// A count of blocks, which lists are made from.
int64_t block_count(const Gguf& gguf, const char* key) {
  const auto count = need<int64_t>(gguf.metadata(), key, gguf.file());
  check(count > 0 && count <= 1024, gguf.file(), ": ", key, " is ", count);
  return count;
}

// llama.cpp scales linearly where a file names a factor and no kind; 0 means none.
void check_unscaled_rope(const Gguf& gguf) {
  const json& meta = gguf.metadata();
  const json& kind = member(meta, "qwen2vl.rope.scaling.type");
  check(kind.is_null() || kind == "none", gguf.file(),
        ": rope scaling is not supported (qwen2vl.rope.scaling.type is ", kind.dump(), ")");
  for (const char* key :
       {"qwen2vl.rope.scaling.factor", "qwen2vl.rope.scale_linear", "qwen2vl.rope.scaling.attn_factor"}) {
    const double factor = meta.contains(key) ? need<double>(meta, key, gguf.file()) : 1;
    check(factor == 1 || factor == 0 || kind == "none", gguf.file(), ": rope scaling is not supported (", key,
          " is ", factor, ")");
  }
}

json text_config(const Gguf& gguf) {
  const json& meta = gguf.metadata();
  const auto number = [&](const char* key) { return need<int64_t>(meta, key, gguf.file()); };
  check_unscaled_rope(gguf);
  auto sections = need<std::vector<int64_t>>(meta, "qwen2vl.rope.dimension_sections", gguf.file());
  check(sections.size() == 3 || (sections.size() == 4 && sections[3] == 0), gguf.file(),
        ": qwen2vl.rope.dimension_sections: expected three sizes, and perhaps 0");
  sections.resize(3);
  const Gguf::Entry& embedding = entry_of(gguf, "token_embd.weight");
  json config = {
      {"model_type", "qwen2_5_vl"},
      {"hidden_size", number("qwen2vl.embedding_length")},
      {"intermediate_size", number("qwen2vl.feed_forward_length")},
      {"num_hidden_layers", block_count(gguf, "qwen2vl.block_count")},
      {"num_attention_heads", number("qwen2vl.attention.head_count")},
      {"rms_norm_eps", need<double>(meta, "qwen2vl.attention.layer_norm_rms_epsilon", gguf.file())},
      {"rope_theta", meta.value("qwen2vl.rope.freq_base", 10000.0)},
      {"rope_scaling", {{"type", "mrope"}, {"mrope_section", sections}}},
      {"max_position_embeddings", number("qwen2vl.context_length")},
      {"vocab_size", embedding.shape[0]},
      {"tie_word_embeddings", !gguf.entries().contains("output.weight")},
      {"torch_dtype", embedding.type->name == std::string_view("F32") ? "float32" : "bfloat16"},
      {"image_token_id", token_id(gguf, "<|image_pad|>")},
      {"video_token_id", token_id(gguf, "<|video_pad|>")}};
  for (const auto& [to, from] : {std::pair{"num_key_value_heads", "qwen2vl.attention.head_count_kv"},
                                 {"head_dim", "qwen2vl.attention.key_length"}})
    if (meta.contains(from)) config[to] = number(from);
  return config;
}

json vision_config(const Gguf& gguf, int64_t out_hidden_size) {
  const json& meta = gguf.metadata();
  const auto number = [&](const char* key) { return need<int64_t>(meta, key, gguf.file()); };
  const int64_t depth = block_count(gguf, "clip.vision.block_count");
  const int64_t pattern =
      number("clip.vision.n_wa_pattern");  // every this-many-th block sees the whole image
  check(pattern > 0, gguf.file(), ": clip.vision.n_wa_pattern is ", pattern);
  json full = json::array();
  for (int64_t block = pattern - 1; block < depth; block += pattern) full.push_back(block);
  return {{"depth", depth},
          {"hidden_size", number("clip.vision.embedding_length")},
          // Some converters write 0 as clip.vision.feed_forward_length.
          {"intermediate_size", entry_of(gguf, "v.blk.0.ffn_up.weight").shape[0]},
          {"num_heads", number("clip.vision.attention.head_count")},
          {"patch_size", number("clip.vision.patch_size")},
          {"spatial_merge_size", meta.value("clip.vision.spatial_merge_size", int64_t{2})},
          {"temporal_patch_size", 2},
          {"window_size", meta.value("clip.vision.window_size", int64_t{112})},
          {"fullatt_block_indexes", full},
          {"out_hidden_size", out_hidden_size}};
}

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

void write_text(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.stream() << text << '\n';
  file.commit();
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

// f(metadata); what is wrong there is named with the file.
template <class Function>
auto with_metadata(const Gguf& gguf, Function f) {
  return named(gguf.file(), [&] {
    try {
      return f(gguf.metadata());
    } catch (const json::exception& error) {
      fail(error.what());
    }
  });
}

class GgufPair : public ModelSource {
 public:
  GgufPair(const Gguf& text, const fs::path& mmproj)
      : mmproj_(mmproj), text_(text), vision_(Gguf::open(mmproj)) {
    const std::string other = text_of(vision_, "general.architecture");
    check(other == "clip", vision_.file(), " holds no vision encoder: its architecture is '", other,
          "', expected 'clip'");
    const std::string projector = text_of(vision_, "clip.projector_type"),
                      type = projector.empty() ? text_of(vision_, "clip.vision.projector_type") : projector;
    check(type == "qwen2.5vl_merger", vision_.file(), ": projector type '", type,
          "' is not supported (known: qwen2.5vl_merger)");
    try {
      config_ = text_config(text_);
      config_["vision_config"] = vision_config(vision_, config_["hidden_size"]);
      preprocessor_ = preprocessor_config(vision_, config_["vision_config"]);
      generation_ = generation_config(text_);
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
    if (file == "generation_config.json") return generation_;
    return file == "preprocessor_config.json" ? preprocessor_ : json();
  }
  Weights weights(Weights::Rename rename) const override {
    return Weights::lazy(published_tensors(text_, vision_), concat(text_.file(), " and ", vision_.file()),
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
  fs::path mmproj_;
  Gguf text_, vision_;
  json config_, preprocessor_, generation_;
};

}  // namespace

void check_holds_language_model(const Gguf& gguf) {
  const std::string kind = text_of(gguf, "general.architecture");
  check(kind != "clip", gguf.file(),
        " holds a vision encoder: name it with --mmproj, and the language model with --model");
  check(kind == "qwen2vl", gguf.file(), ": architecture '", kind,
        "' is not supported (known: qwen2vl, which is Qwen2.5-VL's)");
}

std::unique_ptr<ModelSource> open_gguf_pair(const Gguf& text, const fs::path& mmproj) {
  return std::make_unique<GgufPair>(text, mmproj);
}

}  // namespace glimpse
