#include "glimpse/text/byte_level.h"
#include "glimpse/text/tokenizer_json.h"

namespace glimpse {
namespace {

using nlohmann::json;
using Path = std::filesystem::path;

constexpr const char* gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* clip_pattern = R"('s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+)";
constexpr const char* clip_word_end = "</w>";

// What is no byte string can only be a special token; it stands for itself.
std::string spelling(std::string_view token) {
  return bytes_of_visible(token).value_or(std::string(token));
}

Vocabulary read_vocabulary(const json& tokens) {
  check(tokens.is_object(), "the vocabulary is no object");
  Vocabulary vocabulary;
  for (const auto& [token, id] : tokens.items()) vocabulary.add(spelling(token), read_id(id, token));
  return vocabulary;
}

/// The word pattern of a ByteLevel pre-tokenizer.
std::string byte_level_pattern(const json& part) {
  check(is_off(part, "add_prefix_space"),
        "the pre-tokenizer ByteLevel sets add_prefix_space, which is not supported");
  return part.value("use_regex", true) ? gpt2_pattern : "";
}

std::string read_pattern(const json& part) {
  if (type_of(part) == "ByteLevel") return byte_level_pattern(part);
  const char* expected =
      "expected ByteLevel or a Sequence of Split and ByteLevel without its own regular expression";
  check(type_of(part) == "Sequence", "pre-tokenizer ", type_of(part), ": ", expected);
  const json& parts = part.at("pretokenizers");
  check(parts.is_array() && parts.size() == 2 && type_of(parts[0]) == "Split" &&
            type_of(parts[1]) == "ByteLevel" && byte_level_pattern(parts[1]).empty(),
        "pre-tokenizer Sequence: ", expected);
  const json& split = parts[0];
  check(split.at("behavior") == "Isolated" && is_off(split, "invert"),
        "pre-tokenizer Split: expected behavior Isolated without invert");
  return split.at("pattern").at("Regex").get<std::string>();
}

// The parts around a tokenizer.json's model that turn its text into words.
void read_words(const json& root, ByteLevelData& data) {
  const std::string normalizer = type_of(member(root, "normalizer"));
  check(normalizer == "NFC" || normalizer == "null", "normalizer ", normalizer, ", expected NFC or null");
  data.nfc = normalizer == "NFC";
  data.pattern = read_pattern(member(root, "pre_tokenizer"));
  const std::string post = type_of(member(root, "post_processor"));
  check(post == "ByteLevel" || post == "null", "post-processor ", post, ", expected ByteLevel or null");
}

// The same of CLIP's: white space and what the post-processor puts around a text are not for encode().
void read_clip_words(const json& root, ByteLevelData& data) {
  const auto types = [&](const char* part, const char* list) {
    std::string names;
    const json& parts = member(root, part);
    if (type_of(parts) == "Sequence")
      for (const json& each : parts.at(list)) names += " " + type_of(each);
    return names;
  };
  check(types("normalizer", "normalizers") == " NFC Replace Lowercase" &&
            types("pre_tokenizer", "pretokenizers") == " Split ByteLevel",
        "end_of_word_suffix is only supported with CLIP's normalizer and pre-tokenizer");
  const json& split = root.at("pre_tokenizer").at("pretokenizers").at(0);
  check(split.at("behavior") == "Removed" && split.at("invert") == true,
        "pre-tokenizer Split: expected behavior Removed with invert");
  data.pattern = split.at("pattern").at("Regex").get<std::string>();
  data.lower_case = true;
  data.word_end = clip_word_end;
}

std::vector<Merge> parse_merges(const Vocabulary& vocabulary, std::string_view text) {
  std::vector<Merge> merges;
  for (bool first = true; !text.empty(); first = false) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (first && line.starts_with("#version"))) continue;
    merges.push_back(read_merge(line, vocabulary, spelling));
  }
  return merges;
}

}  // namespace

ByteLevelData parse_byte_level(const json& root) {
  const json& model = root.at("model");
  check(type_of(model) == "BPE", "model type ", type_of(model), ", expected BPE");
  const bool is_clip = member(model, "end_of_word_suffix") == clip_word_end;
  for (const char* option : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                             "byte_fallback", "ignore_merges"}) {
    const std::string name = option;
    if (is_clip && (name == "end_of_word_suffix" || name == "unk_token")) continue;  // no byte is unknown
    check(is_off(model, option), "the BPE model sets ", option, ", which is not supported");
  }

  ByteLevelData data;
  is_clip ? read_clip_words(root, data) : read_words(root, data);
  const std::string decoder = type_of(member(root, "decoder"));
  check(decoder == "ByteLevel", "decoder ", decoder, ", expected ByteLevel");

  data.vocabulary = read_vocabulary(model.at("vocab"));
  data.merges = read_merges(model.at("merges"), data.vocabulary, spelling);
  data.added = read_added_list(root);
  return data;
}

ByteLevelData parse_gguf_tokenizer(const json& metadata) {
  enum Kind { normal = 1, control = 3, user_defined = 4, unused = 5 };
  const auto expect = [&](const char* key, const char* only) {
    const json& value = metadata.at(key);
    check(value == only, key, " is ", value.dump(), ", expected ", only);
  };
  expect("tokenizer.ggml.model", "gpt2");
  expect("tokenizer.ggml.pre", "qwen2");
  const json &tokens = metadata.at("tokenizer.ggml.tokens"),
             &kinds = metadata.at("tokenizer.ggml.token_type");
  check(tokens.is_array() && kinds.is_array() && tokens.size() == kinds.size(),
        "tokenizer.ggml.tokens and tokenizer.ggml.token_type are not two lists of the same length");

  ByteLevelData data;
  data.pattern = qwen2_pattern;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto& token = tokens[id].get_ref<const std::string&>();
    const auto kind = kinds[id].get<int64_t>();
    const auto number = static_cast<int64_t>(id);
    if (kind == normal)
      data.vocabulary.add(spelling(token), number);
    else if (kind == control || kind == user_defined)
      data.added.push_back({token, number, kind == control, false});
    else
      check(kind == unused, "token ", id, " has the type ", kind, ", which is not supported");
  }
  data.merges = read_merges(metadata.at("tokenizer.ggml.merges"), data.vocabulary, spelling);
  return data;
}

ByteLevelData read_vocabulary_and_merges(const Path& directory) {
  ByteLevelData data;
  data.pattern = qwen2_pattern;
  with_json(directory / "vocab.json", [&](const json& root) { data.vocabulary = read_vocabulary(root); });
  const Path merges = directory / "merges.txt";
  const std::string text = read_text(merges);
  try {
    data.merges = parse_merges(data.vocabulary, text);
  } catch (const Error& error) {
    fail(merges.string(), ": ", error.what());
  }

  with_json(directory / "tokenizer_config.json", [&](const json& root) {
    const std::string type = root.value("tokenizer_class", "Qwen2Tokenizer");
    if (type.starts_with("CLIPTokenizer")) {
      data.pattern = clip_pattern;
      data.lower_case = true;
      data.word_end = clip_word_end;
      return;
    }
    check(type == "Qwen2Tokenizer" || type == "Qwen2TokenizerFast", "tokenizer_class ", type,
          " needs a tokenizer.json; without one only Qwen2Tokenizer and CLIPTokenizer are supported");
  });
  data.added = read_added_files(directory);
  if (data.word_end == clip_word_end && data.added.empty())  // older folders only have them in the vocabulary
    for (const char* token : {"<|startoftext|>", "<|endoftext|>"})
      if (const auto id = data.vocabulary.find(token)) data.added.push_back({token, *id, true, true});
  return data;
}

}  // namespace glimpse
