#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace glimpse {

/// The pre-tokenizer's regular expression: cuts text into the words that BPE works on.
class Splitter {
 public:
  /// `pattern` is meant as Oniguruma (which tokenizer.json is written for) reads it. Throws Error when it is
  /// not a regular expression.
  explicit Splitter(const std::string& pattern);

  /// The matches and, if wanted, what lies between them, in order; joined they then give `text`, which must
  /// be valid UTF-8 and outlive the result. Throws Error when the expression needs too many steps on this
  /// text. Thread-safe.
  std::vector<std::string_view> split(std::string_view text, bool between = true) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace glimpse
