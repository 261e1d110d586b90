#include "glimpse/text/added_tokens.h"

#include "glimpse/base/check.h"

namespace glimpse {

void AddedTokenFinder::add(std::string_view content, int64_t id) {
  constexpr size_t longest_token = 1024;
  check(!content.empty() && content.size() <= longest_token, "the added token ", id, " has ", content.size(),
        " bytes, expected 1 to ", longest_token);
  size_t node = 0;
  for (const char c : content) {
    const auto [entry, is_new] = trie_[node].next.emplace(c, trie_.size());
    node = entry->second;
    if (is_new) trie_.emplace_back();
  }
  trie_[node].id = id;
}

AddedTokenFinder::Match AddedTokenFinder::longest(std::string_view text) const {
  Match best{0, -1};
  size_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto entry = trie_[node].next.find(text[i]);
    if (entry == trie_[node].next.end()) break;
    node = entry->second;
    if (trie_[node].id >= 0) best = {i + 1, trie_[node].id};
  }
  return best;
}

}  // namespace glimpse
