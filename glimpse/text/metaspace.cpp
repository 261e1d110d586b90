#include "glimpse/text/metaspace.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/text/utf8.h"

namespace glimpse {
namespace {

constexpr std::string_view metaspace = "\u2581";

/// The byte that a token stands for, or -1.
int byte_of(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  constexpr std::string_view digits = "0123456789ABCDEF";
  const size_t high = digits.find(token[3]), low = digits.find(token[4]);
  return high == digits.npos || low == digits.npos ? -1 : static_cast<int>(16 * high + low);
}

}  // namespace

std::string byte_token(int byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return concat("<0x", digits[byte / 16], digits[byte % 16], ">");
}

std::string with_metaspace(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == ' ')
      out += metaspace;
    else
      out += c;
  }
  return out;
}

MetaspaceTokenizer::MetaspaceTokenizer(MetaspaceData data) : data_(std::move(data)) {
  for (int byte = 0; byte < 256; ++byte)
    check(data_.vocabulary.find(byte_token(byte)).has_value(), "the vocabulary has no token ",
          byte_token(byte));
  for (AddedToken& token : data_.added) {
    finder_.add(token.content, token.id);
    added_.add(std::move(token), data_.vocabulary);
  }
  data_.added.clear();
}

std::vector<int64_t> MetaspaceTokenizer::encode(std::string_view text, bool parse_special,
                                                bool continues) const {
  using Prefix = MetaspaceData::Prefix;
  const std::string valid = repair_utf8(text);
  std::vector<int64_t> ids;
  const auto add_token = [&](int64_t id) { ids.push_back(id); };
  const auto add_text = [&](std::string_view part) {
    const bool begins = part.data() == valid.data() && !continues;
    const bool spaced = part.starts_with(' ') || part.starts_with(metaspace);
    const bool prefixed = (data_.prefix == Prefix::always || (data_.prefix == Prefix::first && begins)) &&
                          (data_.second_space || !spaced);
    std::string spelt(prefixed ? 1 : 0, ' ');
    spelt += part;
    data_.encode(data_.vocabulary, spelt, ids);
  };
  if (parse_special)
    finder_.split(valid, add_text, add_token);
  else if (!valid.empty())
    add_text(valid);
  return ids;
}

std::optional<int64_t> MetaspaceTokenizer::token_id(std::string_view token) const {
  const AddedToken* added = added_.find(token);
  return added ? added->id : data_.vocabulary.find(with_metaspace(token));
}

std::string MetaspaceTokenizer::token_bytes(int64_t id) const {
  if (const AddedToken* added = added_.find(id)) return added->content;
  const std::string& token = data_.vocabulary.bytes(id);
  if (const int byte = byte_of(token); byte >= 0) return std::string(1, static_cast<char>(byte));
  std::string bytes;
  for (size_t at = 0; at < token.size(); ++at) {
    const bool space = token.compare(at, metaspace.size(), metaspace) == 0;
    bytes += space ? ' ' : token[at];
    if (space) at += metaspace.size() - 1;
  }
  return bytes;
}

bool MetaspaceTokenizer::is_special(int64_t id) const {
  const AddedToken* added = added_.find(id);
  return added && added->special;
}

int64_t MetaspaceTokenizer::size() const {
  return std::max(data_.vocabulary.size(), added_.size());
}

}  // namespace glimpse
