#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "glimpse/base/check.h"

/// One decoder per file format, used by decode_image only.
namespace glimpse::detail {

using Bytes = std::span<const uint8_t>;

/// Encoded data with what error messages and limits need.
struct Source {
  Bytes bytes;
  const std::string& name;
  const char* format;
  int64_t max_pixels;
};

/// Pixels as stored in the file.
struct Pixels {
  int width = 0;
  int height = 0;
  int channels = 3;           // 3, or 4 with straight (not premultiplied) alpha
  std::vector<uint8_t> data;  // [height, width, channels]
  int orientation = 1;        // EXIF/TIFF value 1..8
};

template <class... Parts>
[[noreturn]] void damaged(const Source& source, const Parts&... parts) {
  fail(source.name, ": damaged, truncated or unsupported ", source.format, ": ", parts...);
}

/// Throws Error for a size that is not positive or above the limit.
void check_size(const Source& source, int64_t width, int64_t height);

/// Zeroed pixels of that size, which it checks.
Pixels make_pixels(const Source& source, int64_t width, int64_t height, int channels);

/// The orientation that EXIF data (a TIFF block with or without "Exif\0\0" before it) gives, else an XMP
/// text, else 1: Pillow's order.
int orientation(Bytes exif, Bytes xmp);

/// Turns stored pixels the way `pixels.orientation` shows them.
Pixels upright(Pixels pixels);

Pixels decode_jpeg(const Source& source);
Pixels decode_png(const Source& source);
Pixels decode_webp(const Source& source);
Pixels decode_gif(const Source& source);
Pixels decode_bmp(const Source& source);
Pixels decode_tiff(const Source& source);
Pixels decode_heif(const Source& source);
Pixels decode_ico(const Source& source);
Pixels decode_pnm(const Source& source);
Pixels decode_tga(const Source& source);

/// Whether the header can be a TGA file's, which begins with no mark.
bool is_tga(Bytes bytes);

}  // namespace glimpse::detail
