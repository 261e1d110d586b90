#include <set>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/text/byte_level.h"

namespace glimpse {
namespace {

using nlohmann::json;
using Path = std::filesystem::path;

constexpr const char* gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// "type" of a part of tokenizer.json; "null" where the part is missing.
std::string type_of(const json& part) {
  return part.is_null() ? "null" : part.at("type").get<std::string>();
}

/// Whether the member is missing, null, false or "": not asked for.
bool is_off(const json& object, const char* key) {
  const json& value = member(object, key);
  return value.is_null() || value == false || value == "";
}

int64_t read_id(const json& id, std::string_view token) {
  check(id.is_number_integer(), "the id of token \"", token, "\" is no integer");
  return id.get<int64_t>();
}

Vocabulary read_vocabulary(const json& tokens) {
  check(tokens.is_object(), "the vocabulary is no object");
  Vocabulary vocabulary;
  for (const auto& [token, id] : tokens.items()) {
    // What is no byte string can only be a special token; it stands for itself.
    vocabulary.add(bytes_of_visible(token).value_or(token), read_id(id, token));
  }
  return vocabulary;
}

Merge make_merge(const Vocabulary& vocabulary, std::string_view left, std::string_view right) {
  const auto id_of = [&](const char* what, const std::string& bytes) {
    const auto id = vocabulary.find(bytes);
    check(id.has_value(), "merge \"", left, " ", right, "\": its ", what, " is no token of the vocabulary");
    return static_cast<int32_t>(*id);
  };
  const std::string left_bytes = bytes_of_visible(left).value_or(std::string(left));
  const std::string right_bytes = bytes_of_visible(right).value_or(std::string(right));
  return {id_of("left part", left_bytes), id_of("right part", right_bytes),
          id_of("result", left_bytes + right_bytes)};
}

Merge make_merge(const Vocabulary& vocabulary, std::string_view line) {
  const size_t space = line.find(' ');
  check(space != line.npos && line.find(' ', space + 1) == line.npos, "merge \"", line,
        "\": expected two tokens with a space between");
  return make_merge(vocabulary, line.substr(0, space), line.substr(space + 1));
}

Merge make_merge(const Vocabulary& vocabulary, const json& merge) {
  if (merge.is_string()) return make_merge(vocabulary, std::string_view(merge.get_ref<const std::string&>()));
  check(merge.is_array() && merge.size() == 2, "a merge is neither \"left right\" nor [\"left\", \"right\"]");
  return make_merge(vocabulary, merge[0].get_ref<const std::string&>(),
                    merge[1].get_ref<const std::string&>());
}

AddedToken read_added(const json& token, int64_t id) {
  AddedToken added{token.at("content").get<std::string>(), id, false, true};
  added.special = token.value("special", false);
  added.normalized = token.value("normalized", !added.special);
  for (const char* flag : {"lstrip", "rstrip", "single_word"})
    check(is_off(token, flag), "added token \"", added.content, "\" sets ", flag, ", which is not supported");
  return added;
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

ByteLevelData parse_tokenizer_json(const json& root) {
  const json& model = root.at("model");
  check(type_of(model) == "BPE", "model type ", type_of(model), ", expected BPE");
  for (const char* option : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                             "byte_fallback", "ignore_merges"})
    check(is_off(model, option), "the BPE model sets ", option, ", which is not supported");

  ByteLevelData data;
  const std::string normalizer = type_of(member(root, "normalizer"));
  check(normalizer == "NFC" || normalizer == "null", "normalizer ", normalizer, ", expected NFC or null");
  data.nfc = normalizer == "NFC";
  data.pattern = read_pattern(member(root, "pre_tokenizer"));
  const std::string post = type_of(member(root, "post_processor"));
  check(post == "ByteLevel" || post == "null", "post-processor ", post, ", expected ByteLevel or null");
  const std::string decoder = type_of(member(root, "decoder"));
  check(decoder == "ByteLevel", "decoder ", decoder, ", expected ByteLevel");

  data.vocabulary = read_vocabulary(model.at("vocab"));
  const json& merges = model.at("merges");
  check(merges.is_array(), "the merges are no array");
  data.merges.reserve(merges.size());
  for (const json& merge : merges) data.merges.push_back(make_merge(data.vocabulary, merge));
  for (const json& token : member(root, "added_tokens"))
    data.added.push_back(read_added(token, read_id(token.at("id"), "in added_tokens")));
  return data;
}

std::vector<Merge> parse_merges(const Vocabulary& vocabulary, std::string_view text) {
  std::vector<Merge> merges;
  for (bool first = true; !text.empty(); first = false) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (first && line.starts_with("#version"))) continue;
    merges.push_back(make_merge(vocabulary, line));
  }
  return merges;
}

/// Contents of the tokens that special_tokens_map.json, or tokenizer_config.json in the same form, calls
/// special.
void collect_special(const json& map, std::set<std::string>& special) {
  for (const auto& [name, value] : map.items()) {
    if (name != "additional_special_tokens" && !name.ends_with("_token")) continue;
    for (const json& token : value.is_array() ? value : json::array({value})) {
      if (token.is_string()) special.insert(token.get<std::string>());
      if (token.is_object()) special.insert(token.at("content").get<std::string>());
    }
  }
}

/// Calls `parse(json)` if the file is there; errors get the file's name.
template <class Parse>
void with_json(const Path& path, Parse parse) {
  if (!std::filesystem::exists(path)) return;
  const json root = read_json(path);
  try {
    check(root.is_object(), "expected an object");
    parse(root);
  } catch (const json::exception& error) {
    fail(path.string(), ": ", error.what());
  } catch (const Error& error) {
    fail(path.string(), ": ", error.what());
  }
}

ByteLevelData read_vocabulary_and_merges(const Path& directory) {
  ByteLevelData data;
  data.source = directory / "vocab.json";
  data.pattern = qwen2_pattern;
  with_json(data.source, [&](const json& root) { data.vocabulary = read_vocabulary(root); });
  const Path merges = directory / "merges.txt";
  const std::string text = read_text(merges);
  try {
    data.merges = parse_merges(data.vocabulary, text);
  } catch (const Error& error) {
    fail(merges.string(), ": ", error.what());
  }

  std::set<std::string> special;
  with_json(directory / "special_tokens_map.json", [&](const json& root) { collect_special(root, special); });
  with_json(directory / "tokenizer_config.json", [&](const json& root) {
    const std::string type = root.value("tokenizer_class", "Qwen2Tokenizer");
    check(type == "Qwen2Tokenizer" || type == "Qwen2TokenizerFast", "tokenizer_class ", type,
          " needs a tokenizer.json; without one only Qwen2Tokenizer is supported");
    collect_special(root, special);
    for (const auto& [id, token] : member(root, "added_tokens_decoder").items()) {
      check(!id.empty() && id.size() <= 9 && id.find_first_not_of("0123456789") == id.npos,
            "added_tokens_decoder: \"", id, "\" is no token id");
      data.added.push_back(read_added(token, std::stoll(id)));
    }
  });
  if (!data.added.empty()) return data;
  with_json(directory / "added_tokens.json", [&](const json& root) {
    for (const auto& [content, id] : root.items()) {
      const bool is_special = special.contains(content);
      data.added.push_back({content, read_id(id, content), is_special, !is_special});
    }
  });
  return data;
}

}  // namespace

ByteLevelData read_byte_level(const Path& directory) {
  check(std::filesystem::is_directory(directory), directory.string(), ": no such directory");
  const Path whole = directory / "tokenizer.json";
  if (std::filesystem::exists(whole)) {
    ByteLevelData data;
    with_json(whole, [&](const json& root) { data = parse_tokenizer_json(root); });
    data.source = whole;
    return data;
  }
  check(std::filesystem::exists(directory / "vocab.json"), directory.string(),
        ": has neither tokenizer.json nor vocab.json");
  return read_vocabulary_and_merges(directory);
}

}  // namespace glimpse
