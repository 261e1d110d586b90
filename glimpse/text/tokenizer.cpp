#include "glimpse/text/tokenizer.h"

#include "glimpse/base/check.h"
#include "glimpse/text/byte_level.h"
#include "glimpse/text/metaspace.h"
#include "glimpse/text/tokenizer_json.h"
#include "glimpse/text/utf8.h"

namespace glimpse {

namespace {

// A tokenizer of the files' content; `source` is named in errors.
template <class Kind, class Data>
std::unique_ptr<Tokenizer> make(Data data, const std::filesystem::path& source) {
  try {
    return std::make_unique<Kind>(std::move(data));
  } catch (const Error& error) {
    fail(source.string(), ": ", error.what());
  }
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::load(const std::filesystem::path& directory) {
  check(std::filesystem::is_directory(directory), directory.string(), ": no such directory");
  std::unique_ptr<Tokenizer> tokenizer;
  with_json(directory / "tokenizer.json", [&](const nlohmann::json& root) {
    if (is_off(root.at("model"), "byte_fallback"))
      tokenizer = std::make_unique<ByteLevelTokenizer>(parse_byte_level(root));
    else
      tokenizer = std::make_unique<MetaspaceTokenizer>(parse_metaspace(root));
  });
  if (tokenizer) return tokenizer;
  if (const auto model = directory / "tokenizer.model"; std::filesystem::exists(model))
    return make<MetaspaceTokenizer>(read_sentencepiece(directory), model);
  const auto vocabulary = directory / "vocab.json";
  check(std::filesystem::exists(vocabulary), directory.string(),
        ": has neither tokenizer.json nor tokenizer.model nor vocab.json");
  return make<ByteLevelTokenizer>(read_vocabulary_and_merges(directory), vocabulary);
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const int64_t id : ids) text += decoder.push(id);
  return text + decoder.flush();
}

std::string StreamDecoder::push(int64_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return "";
  std::string bytes = tokenizer_.token_bytes(id);
  if (begins_ && !bytes.empty()) {
    if (tokenizer_.drops_first_space() && bytes.starts_with(' ')) bytes.erase(0, 1);
    begins_ = false;
  }
  pending_ += bytes;
  return take_complete(pending_);
}

std::string StreamDecoder::flush() {
  const std::string rest = repair_utf8(pending_);
  pending_.clear();
  begins_ = true;
  return rest;
}

}  // namespace glimpse
