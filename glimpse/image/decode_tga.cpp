#include <algorithm>
#include <string_view>

#include "glimpse/image/stored.h"

namespace glimpse::detail {
namespace {

constexpr size_t header_bytes = 18;
enum Kind : uint8_t { indexed = 1, coloured = 2, grey = 3, run_lengths = 8 };

using Colour = std::array<uint8_t, 4>;

/// A pixel or palette entry of that many bytes, as red, green, blue and alpha.
Colour colour_of(const uint8_t* bytes, size_t count, bool is_grey) {
  if (is_grey) return {bytes[0], bytes[0], bytes[0], count == 2 ? bytes[1] : uint8_t{255}};
  if (count >= 3) return {bytes[2], bytes[1], bytes[0], count == 4 ? bytes[3] : uint8_t{255}};
  const uint32_t value = bytes[0] | bytes[1] << 8;
  const auto five_bits = [value](int shift) {
    return static_cast<uint8_t>((value >> shift & 31) * 255 / 31);
  };
  // Pillow's reading of the attribute bit: 1 is transparent.
  return {five_bits(10), five_bits(5), five_bits(0), static_cast<uint8_t>(value & 0x8000 ? 0 : 255)};
}

/// Whether a second version's footer says that what stands in the place of alpha is none.
bool denies_alpha(const Source& source) {
  constexpr std::string_view signature{"TRUEVISION-XFILE.\0", 18};
  constexpr size_t footer = 26, attributes = 494;
  const Bytes bytes = source.bytes;
  if (bytes.size() < footer) return false;
  if (!std::equal(signature.begin(), signature.end(), bytes.end() - signature.size())) return false;
  const size_t extension = number(source, bytes.size() - footer, 4);
  return extension != 0 && extension + attributes < bytes.size() && bytes[extension + attributes] == 0;
}

}  // namespace

bool is_tga(Bytes bytes) {
  if (bytes.size() < header_bytes) return false;
  const int map = bytes[1], kind = bytes[2] & ~run_lengths, map_depth = bytes[7], depth = bytes[16];
  const bool sized = (bytes[12] | bytes[13]) && (bytes[14] | bytes[15]);
  const bool mapped = map == 1 && (map_depth == 16 || map_depth == 24 || map_depth == 32);
  const bool fits = (kind == indexed && depth == 8 && mapped) ||
                    (kind == coloured && (depth == 16 || depth == 24 || depth == 32)) ||
                    (kind == grey && (depth == 8 || depth == 16));
  return sized && fits && (map == 0 || mapped) && (bytes[17] & 0xC0) == 0;
}

Pixels decode_tga(const Source& source) {
  const Bytes bytes = source.bytes;
  const bool runs = bytes[2] & run_lengths, is_grey = (bytes[2] & ~run_lengths) == grey;
  const bool is_indexed = (bytes[2] & ~run_lengths) == indexed;
  const size_t pixel_bytes = bytes[16] / 8;
  const int64_t width = number(source, 12, 2), height = number(source, 14, 2);
  size_t at = header_bytes + bytes[0];
  check_size(source, width, height);

  std::array<Colour, 256> palette{};
  const size_t map_bytes = bytes[1] ? bytes[7] / 8 : 0, map_start = number(source, 3, 2);
  const size_t map_count = map_bytes ? number(source, 5, 2) : 0;
  need(source, at, map_count * map_bytes);
  for (size_t i = 0; i < map_count && map_start + i < palette.size(); ++i)
    palette[map_start + i] = colour_of(&bytes[at + i * map_bytes], map_bytes, false);
  at += map_count * map_bytes;

  if (!runs) need(source, at, width * height * pixel_bytes);
  const bool alpha = is_indexed ? map_bytes != 3 : pixel_bytes == 2 || pixel_bytes == 4;
  Pixels pixels = make_pixels(source, width, height, alpha ? 4 : 3);
  const bool right_to_left = bytes[17] & 0x10, top_down = bytes[17] & 0x20;
  uint32_t left = 0;  // pixels of the packet that are still to come
  bool repeats = false;
  for (int64_t row = 0; row < height; ++row)
    for (int64_t column = 0; column < width; ++column) {
      if (runs && left == 0) {
        const uint32_t packet = number(source, at++, 1);
        repeats = packet & 0x80;
        left = (packet & 0x7F) + 1;
      }
      need(source, at, pixel_bytes);
      const Colour colour = is_indexed ? palette[bytes[at]] : colour_of(&bytes[at], pixel_bytes, is_grey);
      if (left > 0) --left;
      if (!repeats || left == 0) at += pixel_bytes;
      const int64_t y = top_down ? row : height - 1 - row, x = right_to_left ? width - 1 - column : column;
      std::copy_n(colour.begin(), pixels.channels, &pixels.data[(y * width + x) * pixels.channels]);
    }
  if (alpha && denies_alpha(source))
    for (size_t i = 3; i < pixels.data.size(); i += 4) pixels.data[i] = 255;
  return with_meant_alpha(std::move(pixels));
}

}  // namespace glimpse::detail
