#include <cstdlib>
#include <limits>
#include <memory>

#include "glimpse/image/decoders.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace glimpse::detail {
namespace {

uint32_t number(const Source& source, size_t offset, int count) {
  if (offset + count > source.bytes.size()) damaged(source, "the file ends inside its header");
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) value |= static_cast<uint32_t>(source.bytes[offset + i]) << (8 * i);
  return value;
}

/// What stb_image does not check or report: that all pixels are there, and whether there is alpha.
struct Header {
  int64_t width;
  int64_t height;
  bool alpha = false;
};

Header read_header(const Source& source) {
  constexpr uint32_t core_header = 12, alpha_mask_header = 56;
  constexpr uint32_t uncompressed = 0, bit_fields = 3;
  const uint32_t data_offset = number(source, 10, 4);
  const uint32_t size = number(source, 14, 4);
  Header header{};
  int64_t bits;
  if (size == core_header) {
    header.width = number(source, 18, 2);
    header.height = number(source, 20, 2);
    bits = number(source, 24, 2);
  } else {
    header.width = static_cast<int32_t>(number(source, 18, 4));
    header.height = std::abs(int64_t{static_cast<int32_t>(number(source, 22, 4))});
    bits = number(source, 28, 2);
    const uint32_t compression = number(source, 30, 4);
    if (compression != uncompressed && compression != bit_fields)
      damaged(source, "compressed BMP is not supported");
    header.alpha = compression == bit_fields && size >= alpha_mask_header && number(source, 66, 4) != 0;
  }
  const int64_t row_bytes = (header.width * bits + 31) / 32 * 4;
  const int64_t available = static_cast<int64_t>(source.bytes.size()) - data_offset;
  // Only sizes inside the limit are worth this check (and cannot overflow in it).
  if (header.height > 0 && header.width > 0 && header.width <= source.max_pixels / header.height &&
      available / header.height < row_bytes)
    damaged(source, "the file ends inside its pixels");
  return header;
}

}  // namespace

Pixels decode_bmp(const Source& source) {
  const Header header = read_header(source);
  Pixels pixels = make_pixels(source, header.width, header.height, header.alpha ? 4 : 3);
  if (source.bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()))
    damaged(source, "over 2 GiB");
  int width = 0, height = 0, channels = 0;
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> decoded(
      stbi_load_from_memory(source.bytes.data(), static_cast<int>(source.bytes.size()), &width, &height,
                            &channels, pixels.channels),
      stbi_image_free);
  if (!decoded || width != pixels.width || height != pixels.height) damaged(source, stbi_failure_reason());
  std::copy_n(decoded.get(), pixels.data.size(), pixels.data.data());
  return pixels;
}

}  // namespace glimpse::detail
