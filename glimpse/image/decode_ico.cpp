#include <algorithm>
#include <string_view>

#include "glimpse/image/stored.h"

namespace glimpse::detail {
namespace {

struct Entry {
  uint32_t width, height, depth;
  size_t offset, size;
};

/// The picture that Pillow takes: the largest, of several the one of the fewest colours.
Entry best_entry(const Source& source) {
  constexpr size_t file_header = 6, entry_bytes = 16;
  const uint32_t count = number(source, 4, 2);
  if (count == 0) damaged(source, "it holds no picture");
  std::vector<Entry> entries;
  for (size_t at = file_header; entries.size() < count; at += entry_bytes) {
    const auto side = [&](size_t offset) {
      return (number(source, at + offset, 1) + 255) % 256 + 1;
    };  // 0: 256
    entries.push_back(
        {side(0), side(1), number(source, at + 6, 2), number(source, at + 12, 4), number(source, at + 8, 4)});
  }
  return *std::ranges::max_element(entries, [](const Entry& a, const Entry& b) {
    const uint32_t area = a.width * a.height, other = b.width * b.height;
    return area != other ? area < other : a.depth > b.depth;
  });
}

/// Puts the mask, which stands last and has 1 for transparent, in the place of alpha.
Pixels with_mask(const Source& source, const Pixels& colours) {
  Pixels out = make_pixels(source, colours.width, colours.height, 4);
  const size_t stride = (size_t(colours.width) + 31) / 32 * 4, size = stride * colours.height;
  need(source, 0, size);
  const uint8_t* row = &source.bytes[source.bytes.size() - size];
  for (int y = colours.height - 1; y >= 0; --y, row += stride)
    for (int x = 0; x < colours.width; ++x) {
      const size_t at = static_cast<size_t>(y) * colours.width + x;
      std::copy_n(&colours.data[at * 3], 3, &out.data[at * 4]);
      out.data[at * 4 + 3] = packed_bits(row, x, 1) ? 0 : 255;
    }
  return out;
}

}  // namespace

Pixels decode_ico(const Source& source) {
  const Entry entry = best_entry(source);
  need(source, entry.offset, entry.size);
  Source picture = source;
  picture.bytes = source.bytes.subspan(entry.offset, entry.size);
  constexpr std::string_view png = "\x89PNG";
  need(picture, 0, png.size());
  if (std::equal(png.begin(), png.end(), picture.bytes.begin(),
                 [](char a, uint8_t b) { return uint8_t(a) == b; }))
    return decode_png(picture);
  Pixels pixels = decode_dib(picture, 0, 0, true);
  return pixels.channels == 3 ? with_mask(picture, pixels) : with_meant_alpha(std::move(pixels));
}

}  // namespace glimpse::detail
