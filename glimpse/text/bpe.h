#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace glimpse {

/// Tokens by id and by their bytes.
class Vocabulary {
 public:
  /// Ids are below this, so that a bad file cannot make the tables huge.
  static constexpr int64_t max_size = 1 << 20;

  /// Throws Error for empty bytes, an id out of range, and an id or bytes that are there already.
  void add(std::string bytes, int64_t id);
  std::optional<int64_t> find(std::string_view bytes) const;
  /// "" where the id has no token.
  const std::string& bytes(int64_t id) const;
  /// One more than the highest id.
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  /// Where `bytes` are in slots_, or the free slot where they would go.
  size_t slot_of(std::string_view bytes) const;

  std::vector<std::string> tokens_;
  // An open hash table of ids with -1 for free: a load of 150,000 tokens is mostly look-ups, and
  // std::unordered_map's nodes make it twice as slow.
  std::vector<int32_t> slots_ = std::vector<int32_t>(1024, -1);
  size_t used_ = 0;
};

/// "`left` followed by `right` becomes `result`", all token ids.
struct Merge {
  int32_t left, right, result;
};

/// The merging of byte-pair encoding.
class Merger {
 public:
  /// `merges` in order of priority; of two with the same pair the later one counts.
  explicit Merger(const std::vector<Merge>& merges);

  /// Appends what is left of `symbols` when no merge applies any more, in time n log n.
  void join(const std::vector<int32_t>& symbols, std::vector<int64_t>& ids) const;

 private:
  struct Rule {
    int32_t rank, result;
  };
  const Rule* rule(int32_t left, int32_t right) const;

  std::unordered_map<uint64_t, Rule> rules_;
};

/// Byte-pair encoding of single words.
class Bpe {
 public:
  /// `word_end` is spelt at the end of every word's last token ("</w>", or ""). Throws Error unless every
  /// byte is a token, alone and with it.
  Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, const std::string& word_end = "");

  /// Appends the tokens of `word`, in time n log n. Throws Error for words of 2^31 bytes and more.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;

 private:
  int32_t byte_ids_[256], last_byte_ids_[256];
  Merger merger_;
};

/// The bytes of a token as vocabulary files write it (one visible character per byte), or nothing when it
/// holds other characters.
std::optional<std::string> bytes_of_visible(std::string_view token);

}  // namespace glimpse
