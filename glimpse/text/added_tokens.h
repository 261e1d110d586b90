#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/text/bpe.h"

namespace glimpse {

/// A token beside the vocabulary, matched in the text as written. `normalized`: in the normalised text.
struct AddedToken {
  std::string content;
  int64_t id;
  bool special;
  bool normalized;
};

/// Added tokens by id and by content.
class AddedTokens {
 public:
  /// Throws Error for an id out of range, a second token of that id or content, and when the vocabulary has
  /// another token there.
  void add(AddedToken token, const Vocabulary& vocabulary);
  /// Null if there is none.
  const AddedToken* find(int64_t id) const;
  const AddedToken* find(std::string_view content) const;
  /// One more than the highest id.
  int64_t size() const { return by_id_.empty() ? 0 : by_id_.rbegin()->first + 1; }

 private:
  std::map<int64_t, AddedToken> by_id_;
  std::map<std::string, int64_t, std::less<>> ids_;
};

/// Finds added tokens in text: the leftmost, and of those starting there the longest.
class AddedTokenFinder {
 public:
  void add(std::string_view content, int64_t id);

  /// Calls on_text(std::string_view) for the text between tokens (never empty) and on_token(int64_t id), in
  /// order.
  template <class OnText, class OnToken>
  void split(std::string_view text, OnText on_text, OnToken on_token) const {
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
      const Match match = longest(text.substr(at));
      if (match.length == 0) {
        ++at;
        continue;
      }
      if (done < at) on_text(text.substr(done, at - done));
      on_token(match.id);
      done = at += match.length;
    }
    if (done < text.size()) on_text(text.substr(done));
  }

 private:
  struct Match {
    size_t length;
    int64_t id;
  };
  /// The longest token that `text` starts with; length 0 for none.
  Match longest(std::string_view text) const;

  struct Node {
    int64_t id = -1;
    std::map<char, size_t> next;
  };
  std::vector<Node> trie_ = std::vector<Node>(1);
};

}  // namespace glimpse
