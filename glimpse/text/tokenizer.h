#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse {

/// Text to token ids and back. All methods are thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The tokenizer of a model directory: from tokenizer.json, else from a SentencePiece tokenizer.model,
  /// else from vocab.json and merges.txt, the latter two with the added tokens of tokenizer_config.json or
  /// added_tokens.json. Throws Error naming the file when one is
  /// missing, malformed or asks for something that is not supported.
  static std::unique_ptr<Tokenizer> load(const std::filesystem::path& directory);

  /// Token ids of `text` (invalid UTF-8 counts as U+FFFD), without any begin or end tokens. Added tokens -
  /// the special ones and others such as <tool_call> - that are written in the text are recognised only when
  /// `parse_special`; text of a user should be encoded without. `continues`: the text follows a special token
  /// of the same prompt, where some tokenizers leave out the space that they put before a text.
  virtual std::vector<int64_t> encode(std::string_view text, bool parse_special = true,
                                      bool continues = false) const = 0;

  /// The text of `ids`, with invalid UTF-8 replaced by U+FFFD. Ids without a token add nothing.
  std::string decode(std::span<const int64_t> ids, bool skip_special = true) const;

  /// The id of the token with these bytes (" the", not as vocabulary files write it), added tokens first.
  virtual std::optional<int64_t> token_id(std::string_view token) const = 0;
  /// The token's bytes, not always valid UTF-8; "" for ids without a token.
  virtual std::string token_bytes(int64_t id) const = 0;
  virtual bool is_special(int64_t id) const = 0;
  /// One more than the highest id. A model's embedding may have more rows.
  virtual int64_t size() const = 0;
  /// Whether decoding takes away one space at the very start, which encoding put there.
  virtual bool drops_first_space() const { return false; }
};

/// Decodes token by token and gives out complete characters only. All pieces and flush() joined are decode()
/// of all ids. The tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// What can be shown after this token: "" while a character is incomplete.
  std::string push(int64_t id);
  /// The end: U+FFFD if a character is still incomplete. The decoder is then as new.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string pending_;
  bool begins_ = true;
};

}  // namespace glimpse
