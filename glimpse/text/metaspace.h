#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "glimpse/text/added_tokens.h"
#include "glimpse/text/bpe.h"
#include "glimpse/text/tokenizer.h"

namespace glimpse {

/// The content of a LLaMA tokenizer's files. Tokens are spelt as there: "▁the", and "<0x0A>" for single
/// bytes.
struct MetaspaceData {
  enum class Prefix { never, first, always };

  Vocabulary vocabulary;
  std::vector<AddedToken> added;
  /// Which texts get a space in front: none, what begins a prompt, or everything between special tokens.
  Prefix prefix = Prefix::always;
  bool second_space = true;  ///< Also where the text has one already.
  bool drops_space = true;   ///< Decoded text loses its first space.
  /// Appends the tokens of a text between special tokens, its space in front included.
  std::function<void(const Vocabulary&, std::string_view text, std::vector<int64_t>& ids)> encode;
};

/// From a tokenizer.json whose BPE model falls back to bytes; errors as of tokenizer_json.h.
MetaspaceData parse_metaspace(const nlohmann::json& root);
/// The tokenizer.json of a GGUF file's metadata (one object by key): LLaMA's tokenizer. Error for another
/// kind, nlohmann's for what is missing.
nlohmann::json gguf_metaspace(const nlohmann::json& metadata);
/// From a SentencePiece tokenizer.model with the added tokens beside it. Throws Error naming the file.
MetaspaceData read_sentencepiece(const std::filesystem::path& directory);

/// SentencePiece's kind of tokenizer, as LLaMA uses it: words carry the space before them, characters that
/// are no token fall back to bytes.
class MetaspaceTokenizer : public Tokenizer {
 public:
  /// Throws Error for missing byte tokens and contradictory added tokens.
  explicit MetaspaceTokenizer(MetaspaceData data);

  std::vector<int64_t> encode(std::string_view text, bool parse_special, bool continues) const override;
  std::optional<int64_t> token_id(std::string_view token) const override;
  std::string token_bytes(int64_t id) const override;
  bool is_special(int64_t id) const override;
  int64_t size() const override;
  bool drops_first_space() const override { return data_.drops_space; }

 private:
  MetaspaceData data_;
  AddedTokens added_;
  AddedTokenFinder finder_;
};

/// "<0x0A>" for the byte 10.
std::string byte_token(int byte);

/// `text` with every space as "▁".
std::string with_metaspace(std::string_view text);

}  // namespace glimpse
