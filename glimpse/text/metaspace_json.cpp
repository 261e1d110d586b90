#include "glimpse/text/metaspace.h"
#include "glimpse/text/tokenizer_json.h"
#include "glimpse/text/utf8.h"

namespace glimpse {
namespace {

using nlohmann::json;
using Prefix = MetaspaceData::Prefix;

constexpr const char* metaspace = "\u2581";

/// The parts of a Sequence, the part itself, or none for null.
std::vector<json> parts_of(const json& part, const char* list) {
  if (type_of(part) == "Sequence") return part.at(list).get<std::vector<json>>();
  return part.is_null() ? std::vector<json>() : std::vector<json>{part};
}

void read_prefix(const json& root, MetaspaceData& data) {
  data.prefix = Prefix::never;
  for (const json& part : parts_of(member(root, "normalizer"), "normalizers")) {
    const std::string type = type_of(part);
    if (type == "Prepend" && part.at("prepend") == metaspace) {
      data.prefix = Prefix::always;
    } else {
      const bool spaces =
          type == "Replace" && part.at("pattern") == json{{"String", " "}} && part.at("content") == metaspace;
      check(spaces, "normalizer ", part.dump(), ", expected Prepend and Replace of spaces by ", metaspace);
    }
  }
  const json& words = member(root, "pre_tokenizer");
  if (words.is_null()) return;
  check(type_of(words) == "Metaspace" && words.at("replacement") == metaspace && words.contains("split") &&
            is_off(words, "split"),
        "pre-tokenizer ", words.dump(), ", expected none or Metaspace that does not split");
  const auto scheme = words.value("prepend_scheme", std::string("always"));
  check(scheme == "always" || scheme == "first" || scheme == "never", "prepend_scheme ", scheme,
        ", expected always, first or never");
  if (scheme == "never") return;
  data.prefix = scheme == "first" ? Prefix::first : Prefix::always;
  data.second_space = false;
}

/// Whether decoding takes the first space away.
bool read_decoder(const json& root) {
  bool drops = false;
  for (const json& part : parts_of(member(root, "decoder"), "decoders")) {
    const std::string type = type_of(part);
    if (type == "Metaspace") drops = part.value("prepend_scheme", std::string("always")) != "never";
    if (type != "Strip") continue;
    check(part.at("content") == " " && part.at("start") == 1 && part.at("stop") == 0, "decoder ", part.dump(),
          ", expected to strip one space at the start");
    drops = true;
  }
  return drops;
}

std::string spelling(std::string_view token) {
  return std::string(token);
}

/// Merges the characters of a text; what is no token falls back to its bytes.
void encode(const Vocabulary& vocabulary, const Merger& merger, std::string_view text,
            std::vector<int64_t>& ids) {
  check(text.size() < size_t{1} << 29, "a text of ", text.size(), " bytes is too long");
  const std::string spaced = with_metaspace(text);
  std::vector<int32_t> symbols;
  for (std::string_view rest = spaced; !rest.empty();) {
    const std::string_view character = rest.substr(0, first_sequence(rest).length);
    rest.remove_prefix(character.size());
    if (const auto id = vocabulary.find(character)) {
      symbols.push_back(static_cast<int32_t>(*id));
      continue;
    }
    // MetaspaceTokenizer has made sure that every byte is a token.
    for (const char byte : character)
      symbols.push_back(
          static_cast<int32_t>(vocabulary.find(byte_token(static_cast<unsigned char>(byte))).value_or(0)));
  }
  merger.join(symbols, ids);
}

}  // namespace

MetaspaceData parse_metaspace(const json& root) {
  const json& model = root.at("model");
  check(type_of(model) == "BPE", "model type ", type_of(model), ", expected BPE");
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"})
    check(is_off(model, option), "the BPE model sets ", option, ", which is not supported");
  const std::string post = type_of(member(root, "post_processor"));
  check(post == "TemplateProcessing" || post == "null", "post-processor ", post,
        ", expected TemplateProcessing or null");

  MetaspaceData data;
  read_prefix(root, data);
  data.drops_space = read_decoder(root);
  const json& tokens = model.at("vocab");
  check(tokens.is_object(), "the vocabulary is no object");
  for (const auto& [token, id] : tokens.items()) data.vocabulary.add(token, read_id(id, token));
  data.added = read_added_list(root);
  data.encode = [merger = Merger(read_merges(model.at("merges"), data.vocabulary, spelling))](
                    const Vocabulary& vocabulary, std::string_view text, std::vector<int64_t>& ids) {
    encode(vocabulary, merger, text, ids);
  };
  return data;
}

}  // namespace glimpse
