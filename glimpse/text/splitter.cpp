#include "glimpse/text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/text/utf8.h"

namespace glimpse {
namespace {

constexpr size_t longest_pattern = 16384;    // bytes
constexpr uint32_t step_limit = 20'000'000;  // per match
constexpr uint32_t heap_kib = 256 * 1024;    // per match

using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;
using MatchContext = std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)>;

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

/// PCRE2's \s holds U+180E, Oniguruma's (Unicode's White_Space) does not.
std::string with_unicode_space(const std::string& pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out += pattern[i];
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's')
      out += "\\p{White_Space}";
    else if (escaped == 'S')
      out += "\\P{White_Space}";
    else
      out += {'\\', escaped};
  }
  return out;
}

}  // namespace

void Splitter::Free::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

Splitter::Splitter(const std::string& pattern) {
  check(pattern.size() <= longest_pattern, "the word pattern has ", pattern.size(), " bytes, at most ",
        longest_pattern, " are allowed");
  const std::string source = with_unicode_space(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  check(code_ != nullptr, "the word pattern ", pattern, " is no regular expression: ", message_of(error));
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it fails the interpreter does the same, slower
}

std::vector<std::string_view> Splitter::split(std::string_view text, bool between) const {
  const MatchData match(pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  const MatchContext limits(pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  invariant(match && limits, "PCRE2 could not allocate");
  pcre2_set_match_limit(limits.get(), step_limit);
  pcre2_set_heap_limit(limits.get(), heap_kib);

  std::vector<std::string_view> pieces;
  size_t done = 0;  // everything before is in pieces
  for (size_t from = 0; from < text.size();) {
    // The text is valid; checking it again in every call would make this loop quadratic.
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, match.get(), limits.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    check(found >= 0, "the word pattern fails at byte ", from, " of a text of ", text.size(),
          " bytes: ", message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    const size_t begin = range[0], end = range[1];
    if (begin < end) {
      if (between && done < begin) pieces.push_back(text.substr(done, begin - done));
      pieces.push_back(text.substr(begin, end - begin));
      from = done = end;
    } else {  // an empty match cuts nothing
      from = end < text.size() ? end + first_sequence(text.substr(end)).length : end;
    }
  }
  if (between && done < text.size()) pieces.push_back(text.substr(done));
  return pieces;
}

}  // namespace glimpse
