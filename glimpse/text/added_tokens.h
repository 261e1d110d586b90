#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse {

/// A token beside the vocabulary, matched in the text as written. `normalized`: in the normalised text.
struct AddedToken {
  std::string content;
  int64_t id;
  bool special;
  bool normalized;
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
