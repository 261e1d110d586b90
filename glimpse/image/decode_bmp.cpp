#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>

#include "glimpse/image/stored.h"

namespace glimpse::detail {
namespace {

enum Compression : uint8_t {
  plain = 0,
  run_length_8 = 1,
  run_length_4 = 2,
  bit_fields = 3,
  alpha_bit_fields = 6
};

/// A device-independent bitmap's header, whichever of its versions.
struct Header {
  int64_t width = 0;
  int64_t height = 0;
  bool top_down = false;
  uint32_t bits = 0;
  uint32_t compression = plain;
  std::array<uint32_t, 4> masks{};  // red, green, blue, alpha of a pixel of 16, 24 or 32 bits
  size_t palette_at = 0;
  uint32_t palette_entry = 4;
  size_t colours = 0;
};

/// The header at `at`. 12 bytes: OS/2 1; 40: Windows 3; 52 and 56: with masks; 64: OS/2 2; 108 and 124:
/// Windows 4, 5.
Header read_header(const Source& source, size_t at) {
  constexpr uint32_t core = 12, sizes[] = {core, 40, 52, 56, 64, 108, 124};
  const uint32_t size = number(source, at, 4);
  if (std::ranges::find(sizes, size) == std::end(sizes)) damaged(source, "its header is of ", size, " bytes");
  Header header;
  header.palette_at = at + size;
  if (size == core) {
    header.width = number(source, at + 4, 2);
    header.height = number(source, at + 6, 2);
    header.bits = number(source, at + 10, 2);
    header.palette_entry = 3;
  } else {
    const auto height = static_cast<int32_t>(number(source, at + 8, 4));
    header.width = static_cast<int32_t>(number(source, at + 4, 4));
    header.height = std::abs(int64_t{height});
    header.top_down = height < 0;
    header.bits = number(source, at + 14, 2);
    header.compression = number(source, at + 16, 4);
    header.colours = number(source, at + 32, 4);
  }
  if (header.bits <= 8) {
    const size_t most = size_t{1} << header.bits;
    if (header.colours == 0 || header.colours > most) header.colours = most;
  } else if (header.compression == bit_fields || header.compression == alpha_bit_fields) {
    // Behind the oldest header or inside the newer ones, which is the same place.
    const size_t count = size >= 56 || header.compression == alpha_bit_fields ? 4 : 3;
    for (size_t i = 0; i < count; ++i) header.masks[i] = number(source, at + 40 + 4 * i, 4);
    if (size == 40) header.palette_at += 4 * count;
  } else if (header.bits == 16) {
    header.masks = {0x7C00, 0x3E0, 0x1F, 0};
  } else {
    header.masks = {0xFF0000, 0xFF00, 0xFF, 0};
  }
  return header;
}

void check_kind(const Source& source, const Header& header) {
  const uint32_t bits = header.bits, compression = header.compression;
  const bool indexed = bits == 1 || bits == 2 || bits == 4 || bits == 8;
  const bool coloured = bits == 16 || bits == 24 || bits == 32;
  const bool fits = compression == plain          ? indexed || coloured
                    : compression == run_length_8 ? bits == 8
                    : compression == run_length_4 ? bits == 4
                                                  : coloured;
  if (!fits || (compression > bit_fields && compression != alpha_bit_fields))
    damaged(source, "compression ", compression, " with ", bits, " bits a pixel is not supported");
}

/// The indices of RLE8 or RLE4 data, [height, width] in the order of the file; what it leaves out is 0.
std::vector<uint8_t> run_length_indices(const Source& source, const Header& header, size_t at) {
  const size_t width = header.width, height = header.height;
  std::vector<uint8_t> indices(width * height);
  const bool halves = header.compression == run_length_4;
  size_t x = 0, y = 0;
  const auto put = [&](uint8_t index) {
    if (x < width) indices[y * width + x] = index;
    ++x;
  };
  while (y < height) {
    const uint32_t count = number(source, at, 1), value = number(source, at + 1, 1);
    at += 2;
    if (count > 0) {  // a run, of two indices in turns where they are half bytes
      for (uint32_t i = 0; i < count; ++i)
        put(static_cast<uint8_t>(!halves ? value : i % 2 ? value & 15 : value >> 4));
    } else if (value == 0) {  // end of line
      x = 0;
      ++y;
    } else if (value == 1) {  // end of picture
      break;
    } else if (value == 2) {  // a jump
      x += number(source, at, 1);
      y += number(source, at + 1, 1);
      at += 2;
    } else {  // as many indices, padded to two bytes
      for (uint32_t i = 0; i < value; ++i) {
        const uint32_t byte = number(source, at + (halves ? i / 2 : i), 1);
        put(static_cast<uint8_t>(!halves ? byte : i % 2 ? byte & 15 : byte >> 4));
      }
      const uint32_t size = halves ? (value + 1) / 2 : value;
      at += size + size % 2;
    }
  }
  return indices;
}

/// A component of a pixel, as 8 bits.
uint8_t component(uint32_t pixel, uint32_t mask) {
  if (mask == 0) return 0;
  const uint32_t most = mask >> std::countr_zero(mask);
  const uint32_t value = (pixel & mask) >> std::countr_zero(mask);
  return static_cast<uint8_t>(most >= 255 ? value >> (std::bit_width(most) - 8) : value * 255 / most);
}

}  // namespace

Pixels decode_dib(const Source& source, size_t at, size_t data_at, bool icon) {
  Header header = read_header(source, at);
  if (icon) header.height /= 2;  // the mask below the picture is counted
  if (icon && header.bits == 32 && header.compression == plain) header.masks[3] = 0xFF000000;
  check_size(source, header.width, header.height);
  check_kind(source, header);
  Palette palette{};
  if (header.bits <= 8) {
    size_t count = header.colours;
    if (data_at > header.palette_at)
      count = std::min(count, (data_at - header.palette_at) / header.palette_entry);
    palette = read_palette(source, header.palette_at, count, header.palette_entry);
    if (data_at == 0) data_at = header.palette_at + count * header.palette_entry;
  }
  if (data_at == 0) data_at = header.palette_at;

  const bool runs = header.compression == run_length_8 || header.compression == run_length_4;
  std::vector<uint8_t> indices;
  if (runs) indices = run_length_indices(source, header, data_at);
  const int64_t row_bits = header.width * header.bits;
  const size_t stride = (row_bits + 31) / 32 * 4;
  // The last row's padding may be missing.
  if (!runs) need(source, data_at, (header.height - 1) * stride + (row_bits + 7) / 8);

  Pixels pixels = make_pixels(source, header.width, header.height, header.masks[3] != 0 ? 4 : 3);
  for (int64_t row = 0; row < header.height; ++row) {
    const int64_t y = header.top_down ? row : header.height - 1 - row;
    uint8_t* to = &pixels.data[y * header.width * pixels.channels];
    for (int64_t x = 0; x < header.width; ++x, to += pixels.channels) {
      if (header.bits <= 8) {
        const uint8_t index = runs ? indices[row * header.width + x]
                                   : packed_bits(&source.bytes[data_at + row * stride], x, header.bits);
        std::copy_n(palette[index].begin(), 3, to);
        continue;
      }
      const uint32_t bytes = header.bits / 8;
      const uint32_t pixel = number(source, data_at + row * stride + x * bytes, bytes);
      for (int c = 0; c < pixels.channels; ++c) to[c] = component(pixel, header.masks[c]);
    }
  }
  return pixels;
}

Pixels decode_bmp(const Source& source) {
  constexpr size_t file_header = 14;
  return with_meant_alpha(decode_dib(source, file_header, number(source, 10, 4), false));
}

}  // namespace glimpse::detail
