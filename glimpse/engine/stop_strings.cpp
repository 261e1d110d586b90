#include "glimpse/engine/stop_strings.h"

#include <algorithm>
#include <utility>

#include "glimpse/base/check.h"

namespace glimpse {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& string : strings_) check(!string.empty(), "stop: a string is empty");
}

std::string StopStrings::push(const std::string& text) {
  if (found_) return "";
  held_ += text;
  size_t end = held_.size();  // of what is certain
  for (const std::string& string : strings_) {
    const size_t at = held_.find(string);
    if (at >= end) continue;  // not found, or behind another
    end = at;
    found_ = true;
  }
  if (!found_)
    for (const std::string& string : strings_)
      for (size_t length = std::min(string.size() - 1, held_.size()); length > 0; --length)
        if (held_.ends_with(string.substr(0, length))) {
          end = std::min(end, held_.size() - length);
          break;
        }
  std::string certain = held_.substr(0, end);
  held_ = found_ ? "" : held_.substr(end);
  return certain;
}

std::string StopStrings::flush() {
  return std::exchange(held_, "");
}

}  // namespace glimpse
