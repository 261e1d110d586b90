#include <algorithm>
#include <charconv>
#include <cmath>

#include "glimpse/image/stored.h"

namespace glimpse::detail {
namespace {

bool is_space(uint8_t byte) {
  return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

/// The words of a PNM file: what stands between spaces and comments.
class Words {
 public:
  explicit Words(const Source& source) : source_(source) {}

  /// The next word's number, of one digit where `digits` is 1: bits need no space between them.
  uint32_t next(size_t digits = 10) {
    skip();
    const char* begin = reinterpret_cast<const char*>(source_.bytes.data()) + at;
    const char* end = begin + std::min(digits, source_.bytes.size() - at);
    uint32_t value = 0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc{}) damaged(source_, "a number is missing at byte ", at);
    at += stop - begin;
    return value;
  }

  size_t at = 2;  // behind the magic number

 private:
  void skip() {
    const Bytes bytes = source_.bytes;
    while (at < bytes.size() && (is_space(bytes[at]) || bytes[at] == '#'))
      if (bytes[at++] == '#')
        while (at < bytes.size() && bytes[at] != '\n' && bytes[at] != '\r') ++at;
    if (at >= bytes.size()) damaged(source_, "the file ends too early");
  }

  const Source& source_;
};

}  // namespace

/// PBM, PGM and PPM: P1 to P3 as text, P4 to P6 as bytes.
Pixels decode_pnm(const Source& source) {
  const int kind = source.bytes[1] - '0';
  const bool bits = kind == 1 || kind == 4, coloured = kind == 3 || kind == 6, text = kind <= 3;
  Words words(source);
  const int64_t width = words.next(), height = words.next();
  const uint32_t most = bits ? 1 : words.next();
  if (most < 1 || most > 65535) damaged(source, "its highest value is ", most);
  check_size(source, width, height);

  const size_t row_values = width * (coloured ? 3 : 1), value_bytes = most > 255 ? 2 : 1;
  const size_t row_bytes = bits ? (width + 7) / 8 : row_values * value_bytes;
  const size_t data_at = words.at + 1;  // a single space stands before bytes
  if (text)
    need(source, words.at, row_values * height);
  else
    need(source, data_at, row_bytes * height);
  const auto value_at = [&](size_t y, size_t i) -> uint32_t {
    if (text) return words.next(bits ? 1 : 10);
    const uint8_t* row = &source.bytes[data_at + y * row_bytes];
    if (bits) return packed_bits(row, i, 1);
    return value_bytes == 1 ? row[i] : row[2 * i] << 8 | row[2 * i + 1];
  };

  Pixels pixels = make_pixels(source, width, height, 3);
  uint8_t* to = pixels.data.data();
  for (size_t y = 0; y < static_cast<size_t>(height); ++y)
    for (size_t i = 0; i < row_values; ++i) {
      uint32_t value = value_at(y, i);
      if (value > most) damaged(source, "the value ", value, " is more than ", most);
      if (bits) value = 1 - value;  // 1 is black
      const auto byte = static_cast<uint8_t>(most == 255 ? value : std::nearbyint(value * 255.0 / most));
      to = std::fill_n(to, coloured ? 1 : 3, byte);
    }
  return pixels;
}

}  // namespace glimpse::detail
