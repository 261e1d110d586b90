#pragma once

#include <algorithm>
#include <string>

namespace glimpse {

/// With its ASCII letters small.
inline std::string lowered(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return text;
}

/// Without these characters at its begin and end.
inline std::string trimmed(const std::string& text, const char* spaces = " \t\r\n") {
  const size_t first = text.find_first_not_of(spaces);
  return first == text.npos ? "" : text.substr(first, text.find_last_not_of(spaces) + 1 - first);
}

}  // namespace glimpse
