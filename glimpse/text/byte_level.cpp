#include "glimpse/text/byte_level.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/text/utf8.h"

namespace glimpse {

ByteLevelTokenizer::ByteLevelTokenizer(ByteLevelData data)
    : vocabulary_(std::move(data.vocabulary)),
      bpe_(vocabulary_, data.merges, data.word_end),
      nfc_(data.nfc),
      lower_case_(data.lower_case),
      keeps_spaces_(data.word_end.empty()) {
  if (!data.pattern.empty()) splitter_.emplace(data.pattern);
  for (AddedToken& token : data.added) {
    if (token.normalized)
      in_normalized_text_.add(normal(token.content), token.id);
    else
      in_raw_text_.add(token.content, token.id);
    added_.add(std::move(token), vocabulary_);
  }
}

std::string ByteLevelTokenizer::normal(std::string_view text) const {
  const std::string composed = nfc_ ? nfc(text) : std::string(text);
  return lower_case_ ? lower_case(composed) : composed;
}

std::vector<int64_t> ByteLevelTokenizer::encode(std::string_view text, bool parse_special, bool) const {
  std::vector<int64_t> ids;
  const auto add_token = [&](int64_t id) { ids.push_back(id); };
  const auto add_words = [&](std::string_view part) {
    if (!splitter_) return bpe_.encode(part, ids);
    for (const std::string_view word : splitter_->split(part, keeps_spaces_)) bpe_.encode(word, ids);
  };
  const auto add_raw = [&](std::string_view part) {
    const std::string text_as_read = normal(part);
    parse_special ? in_normalized_text_.split(text_as_read, add_words, add_token) : add_words(text_as_read);
  };
  const std::string valid = repair_utf8(text);
  parse_special ? in_raw_text_.split(valid, add_raw, add_token) : add_raw(valid);
  return ids;
}

std::optional<int64_t> ByteLevelTokenizer::token_id(std::string_view token) const {
  const AddedToken* added = added_.find(token);
  return added ? added->id : vocabulary_.find(token);
}

std::string ByteLevelTokenizer::token_bytes(int64_t id) const {
  const AddedToken* added = added_.find(id);
  return added ? added->content : vocabulary_.bytes(id);
}

bool ByteLevelTokenizer::is_special(int64_t id) const {
  const AddedToken* added = added_.find(id);
  return added && added->special;
}

int64_t ByteLevelTokenizer::size() const {
  return std::max(vocabulary_.size(), added_.size());
}

}  // namespace glimpse
