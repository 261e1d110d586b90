#pragma once

#include <string>
#include <vector>

namespace glimpse {

/// Finds the first of several strings in a text that comes in pieces. What could be the beginning of one is
/// held back until that is certain.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> strings);
  /// What is certainly before any of the strings, of the text so far that was not returned yet.
  std::string push(const std::string& text);
  /// Whether one was found; what comes behind it is dropped.
  bool found() const { return found_; }
  /// At the end of the text: what was held back.
  std::string flush();

 private:
  const std::vector<std::string> strings_;
  std::string held_;
  bool found_ = false;
};

}  // namespace glimpse
