#include "glimpse/text/added_tokens.h"

#include "glimpse/base/check.h"

namespace glimpse {

void AddedTokens::add(AddedToken token, const Vocabulary& vocabulary) {
  const int64_t id = token.id;
  check(id >= 0 && id < Vocabulary::max_size, "added token \"", token.content, "\" has id ", id,
        ", expected 0 to ", Vocabulary::max_size - 1);
  const std::string& ordinary = vocabulary.bytes(id);
  check(ordinary.empty() || ordinary == token.content, "added token \"", token.content, "\" has the id ", id,
        " of another token");
  check(ids_.emplace(token.content, id).second, "added token \"", token.content, "\" is there twice");
  check(by_id_.emplace(id, std::move(token)).second, "id ", id, " belongs to two added tokens");
}

const AddedToken* AddedTokens::find(int64_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &found->second;
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = ids_.find(content);
  return found == ids_.end() ? nullptr : find(found->second);
}

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
