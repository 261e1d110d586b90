#include "glimpse/text/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";

/// Appends the sequences of `bytes` and returns how many bytes of an incomplete one are left at its end.
size_t append_complete(std::string_view bytes, std::string& out) {
  while (!bytes.empty()) {
    const auto [state, length] = first_sequence(bytes);
    if (state == Utf8Sequence::State::incomplete) return length;
    out += state == Utf8Sequence::State::valid ? bytes.substr(0, length) : replacement;
    bytes.remove_prefix(length);
  }
  return 0;
}

void append_character(utf8proc_int32_t point, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(point, bytes);
  out.append(reinterpret_cast<const char*>(bytes), length);
}

}  // namespace

Utf8Sequence first_sequence(std::string_view bytes) {
  using enum Utf8Sequence::State;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {valid, 1};
  if (first < 0xC2 || first > 0xF4) return {invalid, 1};
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte's range rules out overlong forms, surrogates and code points above U+10FFFF.
  unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i == bytes.size()) return {incomplete, i};
    if (byte(i) < low || byte(i) > high) return {invalid, i};
  }
  return {valid, length};
}

std::string take_complete(std::string& bytes) {
  std::string out;
  const size_t left = append_complete(bytes, out);
  bytes.erase(0, bytes.size() - left);
  return out;
}

std::string repair_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (append_complete(bytes, out) > 0) out += replacement;
  return out;
}

std::string nfc(std::string_view text) {
  // Nothing below U+0300 (first byte 0xCC) changes.
  if (std::ranges::none_of(text, [](unsigned char c) { return c >= 0xCC; })) return std::string(text);

  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  const auto decompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  const auto* next = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto* end = next + text.size();
  while (next < end) {
    utf8proc_int32_t point, parts[8];
    const auto length = utf8proc_iterate(next, end - next, &point);
    invariant(length > 0, "nfc() was given invalid UTF-8");
    next += length;
    int boundclass = 0;
    const auto count = utf8proc_decompose_char(point, parts, std::ssize(parts), decompose, &boundclass);
    invariant(count > 0 && count <= std::ssize(parts), "a canonical decomposition has at most 4 code points");
    points.insert(points.end(), parts, parts + count);
  }

  // Canonical order; utf8proc's own sort is quadratic in the number of combining marks in a row.
  const auto combining = [](utf8proc_int32_t p) { return utf8proc_get_property(p)->combining_class; };
  const auto is_mark = [&](utf8proc_int32_t p) { return combining(p) != 0; };
  for (auto begin = points.begin(); begin != points.end();) {
    begin = std::find_if(begin, points.end(), is_mark);
    const auto stop = std::find_if_not(begin, points.end(), is_mark);
    std::stable_sort(begin, stop, [&](auto a, auto b) { return combining(a) < combining(b); });
    begin = stop;
  }

  const auto compose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto count = utf8proc_normalize_utf32(points.data(), std::ssize(points), compose);
  invariant(count >= 0, "utf8proc could not compose");
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_character(points[i], out);
  return out;
}

std::string lower_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    utf8proc_int32_t point;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto length = utf8proc_iterate(bytes, std::ssize(text), &point);
    invariant(length > 0, "lower_case() was given invalid UTF-8");
    text.remove_prefix(length);
    append_character(utf8proc_tolower(point), out);
    if (point == 0x130) append_character(0x307, out);  // the one letter that becomes two: I with a dot
  }
  return out;
}

}  // namespace glimpse
