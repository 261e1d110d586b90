#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace glimpse {

/// What stands at the start of some bytes. `invalid`: `length` bytes are to be replaced by one U+FFFD (the
/// longest beginning of a sequence, as Python's errors="replace" and the WHATWG do it). `incomplete`: all
/// `length` bytes are the beginning of a sequence whose rest is missing.
struct Utf8Sequence {
  enum class State { valid, invalid, incomplete } state;
  size_t length;
};

/// The first sequence of `bytes`, which must not be empty.
Utf8Sequence first_sequence(std::string_view bytes);

/// Moves the complete sequences from the front of `bytes` into the result, invalid ones as U+FFFD; what is
/// left in `bytes` is at most 3 bytes of an incomplete one.
std::string take_complete(std::string& bytes);

/// `bytes` with everything invalid or incomplete replaced by U+FFFD.
std::string repair_utf8(std::string_view bytes);

/// Normalization form C of valid UTF-8, in time n log n.
std::string nfc(std::string_view text);

/// Valid UTF-8 with every character in lower case, whatever stands around it.
std::string lower_case(std::string_view text);

}  // namespace glimpse
