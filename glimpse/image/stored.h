#pragma once

#include <algorithm>
#include <array>

#include "glimpse/image/decoders.h"

/// What the readers of plainly stored pixels (BMP, ICO, TGA, PPM) share.
namespace glimpse::detail {

/// Throws Error unless `count` bytes stand at `offset`.
inline void need(const Source& source, size_t offset, size_t count) {
  if (offset > source.bytes.size() || count > source.bytes.size() - offset)
    damaged(source, "the file ends too early");
}

/// The little-endian number of `count` bytes at `offset`.
inline uint32_t number(const Source& source, size_t offset, size_t count) {
  need(source, offset, count);
  uint32_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<uint32_t>(source.bytes[offset + i]) << (8 * i);
  return value;
}

/// The x-th number of `bits` (1, 2, 4 or 8) bits in a row, the first in the highest bits.
inline uint8_t packed_bits(const uint8_t* row, size_t x, uint32_t bits) {
  const size_t per_byte = 8 / bits, shift = 8 - bits * (x % per_byte + 1);
  return static_cast<uint8_t>((row[x / per_byte] >> shift) & ((1u << bits) - 1));
}

/// Red, green and blue of each index; black for those that the file leaves out.
using Palette = std::array<std::array<uint8_t, 3>, 256>;

/// `count` entries of blue, green, red and, in entries of 4 bytes, a byte without meaning.
inline Palette read_palette(const Source& source, size_t at, size_t count, size_t entry_bytes) {
  need(source, at, count * entry_bytes);
  Palette palette{};
  for (size_t i = 0; i < std::min(count, palette.size()); ++i, at += entry_bytes)
    palette[i] = {source.bytes[at + 2], source.bytes[at + 1], source.bytes[at]};
  return palette;
}

/// Without an alpha channel that is 0 everywhere: some writers leave it so, and nobody saves an invisible
/// picture.
inline Pixels with_meant_alpha(Pixels pixels) {
  if (pixels.channels != 4) return pixels;
  for (size_t i = 3; i < pixels.data.size(); i += 4)
    if (pixels.data[i] != 0) return pixels;
  for (size_t i = 3; i < pixels.data.size(); i += 4) pixels.data[i] = 255;
  return pixels;
}

/// A bitmap without a file header, at `at`, its pixels at `data_at` (0: behind its palette). In an icon half
/// of the height is a mask, and 32 bits have alpha.
Pixels decode_dib(const Source& source, size_t at, size_t data_at, bool icon);

}  // namespace glimpse::detail
