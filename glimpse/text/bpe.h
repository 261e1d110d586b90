#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace glimpse {

struct StringHash : std::hash<std::string_view> {
  using is_transparent = void;
};

/// Tokens by id and by their bytes.
class Vocabulary {
 public:
  /// Ids are below this, so that a bad file cannot make the tables huge.
  static constexpr int64_t max_size = 1 << 20;

  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  void reserve(size_t tokens) { ids_.reserve(tokens); }
  /// Throws Error for empty bytes, an id out of range, and an id or bytes that are there already.
  void add(std::string bytes, int64_t id);
  std::optional<int64_t> find(std::string_view bytes) const;
  /// Null where the id has no token.
  const std::string* bytes(int64_t id) const;
  /// One more than the highest id.
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

 private:
  std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>> ids_;
  std::vector<const std::string*> bytes_;  // into ids_
};

/// "`left` followed by `right` becomes `result`", all token ids.
struct Merge {
  int32_t left, right, result;
};

/// Byte-pair encoding of single words.
class Bpe {
 public:
  /// `merges` in order of priority; of two with the same pair the later one counts. Throws Error unless every
  /// byte is a token.
  Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges);

  /// Appends the tokens of `word`, in time n log n. Throws Error for words of 2^31 bytes and more.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;

 private:
  struct Rule {
    int32_t rank, result;
  };
  const Rule* rule(int32_t left, int32_t right) const;

  int32_t byte_ids_[256];
  std::unordered_map<uint64_t, Rule> rules_;
};

/// The bytes of a token as vocabulary files write it (one visible character per byte), or nothing when it
/// holds other characters.
std::optional<std::string> bytes_of_visible(std::string_view token);

}  // namespace glimpse
