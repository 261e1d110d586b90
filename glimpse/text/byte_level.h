#pragma once

#include <nlohmann/json_fwd.hpp>

#include "glimpse/text/added_tokens.h"
#include "glimpse/text/bpe.h"
#include "glimpse/text/splitter.h"
#include "glimpse/text/tokenizer.h"

namespace glimpse {

/// The content of a byte-level BPE tokenizer's files.
struct ByteLevelData {
  Vocabulary vocabulary;
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  bool nfc = true;          ///< Normalise the text first.
  bool lower_case = false;  ///< Then lower its letters.
  std::string pattern;      ///< Of words; "" when text is not cut.
  /// CLIP's kind: what a word's last token is spelt with at its end. Text between words is left out.
  std::string word_end;
};

/// From a tokenizer.json; errors as of tokenizer_json.h.
ByteLevelData parse_byte_level(const nlohmann::json& root);
/// From a GGUF file's metadata (one object by key): Qwen2's tokenizer. Errors as of tokenizer_json.h.
ByteLevelData parse_gguf_tokenizer(const nlohmann::json& metadata);
/// From vocab.json and merges.txt: Qwen2's tokenizer, or CLIP's where tokenizer_config.json says so. Throws
/// Error naming the file.
ByteLevelData read_vocabulary_and_merges(const std::filesystem::path& directory);

/// GPT-2's kind of tokenizer, as Qwen2 and Qwen2.5 use it, and CLIP in lower case and with marked word ends,
/// which token_bytes() gives as "</w>".
class ByteLevelTokenizer : public Tokenizer {
 public:
  /// Throws Error for a bad pattern, missing byte tokens and contradictory added tokens.
  explicit ByteLevelTokenizer(ByteLevelData data);

  std::vector<int64_t> encode(std::string_view text, bool parse_special, bool continues) const override;
  std::optional<int64_t> token_id(std::string_view token) const override;
  std::string token_bytes(int64_t id) const override;
  bool is_special(int64_t id) const override;
  int64_t size() const override;

 private:
  Vocabulary vocabulary_;
  Bpe bpe_;
  std::string normal(std::string_view text) const;

  bool nfc_, lower_case_, keeps_spaces_;
  std::optional<Splitter> splitter_;
  AddedTokens added_;
  AddedTokenFinder in_raw_text_, in_normalized_text_;
};

}  // namespace glimpse
