#include <libexif/exif-data.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

std::optional<int> exif_orientation(Bytes exif) {
  // libexif takes blocks that start with this marker; PNG and WebP files leave it out, or have it twice.
  static constexpr std::string_view marker{"Exif\0\0", 6};
  while (exif.size() >= marker.size() && std::equal(marker.begin(), marker.end(), exif.begin()))
    exif = exif.subspan(marker.size());
  if (exif.size() < 8 || exif.size() > std::numeric_limits<int>::max()) return {};
  std::vector<uint8_t> block(marker.begin(), marker.end());
  block.insert(block.end(), exif.begin(), exif.end());
  const std::unique_ptr<ExifData, decltype(&exif_data_unref)> data(
      exif_data_new_from_data(block.data(), static_cast<unsigned>(block.size())), exif_data_unref);
  if (!data) return {};
  const ExifEntry* entry = exif_content_get_entry(data->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION);
  if (!entry || !entry->data || entry->size < 2 || entry->format != EXIF_FORMAT_SHORT) return {};
  return exif_get_short(entry->data, exif_data_get_byte_order(data.get()));
}

/// The digit in tiff:Orientation="6" or <tiff:Orientation>6<.
std::optional<int> xmp_orientation(Bytes xmp) {
  const std::string_view text(reinterpret_cast<const char*>(xmp.data()), xmp.size());
  constexpr std::string_view name = "tiff:Orientation";
  for (size_t at = text.find(name); at != text.npos; at = text.find(name, at)) {
    at += name.size();
    std::string_view rest = text.substr(at);
    if (rest.starts_with("=\"")) rest.remove_prefix(1);
    if (rest.size() > 1 && (rest[0] == '"' || rest[0] == '>') && rest[1] >= '0' && rest[1] <= '9')
      return rest[1] - '0';
  }
  return {};
}

}  // namespace

int orientation(Bytes exif, Bytes xmp) {
  std::optional<int> value = exif_orientation(exif);
  if (!value) value = xmp_orientation(xmp);
  return value && *value >= 1 && *value <= 8 ? *value : 1;
}

Pixels upright(Pixels pixels) {
  const int orientation = pixels.orientation;
  if (orientation == 1) return pixels;
  const bool flip_columns = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_rows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool transposed = orientation >= 5;
  const int n = pixels.channels;
  Pixels out{pixels.width, pixels.height, n, std::vector<uint8_t>(pixels.data.size()), 1};
  if (transposed) std::swap(out.width, out.height);
  uint8_t* to = out.data.data();
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < out.width; ++x, to += n) {
      const int row = transposed ? x : y;
      const int column = transposed ? y : x;
      const int64_t from_row = flip_rows ? pixels.height - 1 - row : row;
      const int from_column = flip_columns ? pixels.width - 1 - column : column;
      std::copy_n(&pixels.data[(from_row * pixels.width + from_column) * n], n, to);
    }
  return out;
}

}  // namespace glimpse::detail
