#include <png.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <csetjmp>
#include <cstring>
#include <string_view>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

/// libpng's state. Its errors longjmp, so calls into it go through `run`.
struct Reader {
  explicit Reader(Bytes data) : rest(data) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    info = png ? png_create_info_struct(png) : nullptr;
    invariant(info != nullptr, "libpng cannot start");
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }

  /// False when libpng failed inside `calls`, with the reason in `message`. `calls` must own nothing that
  /// needs a destructor.
  template <class Calls>
  bool run(const Calls& calls) {
    if (setjmp(png_jmpbuf(png))) return false;
    calls();
    return true;
  }

  [[noreturn]] static void on_error(png_structp png, png_const_charp text) {
    auto* self = static_cast<Reader*>(png_get_error_ptr(png));
    std::strncpy(self->message, text, sizeof self->message - 1);
    png_longjmp(png, 1);
  }

  static void on_read(png_structp png, png_bytep to, size_t size) {
    auto* self = static_cast<Reader*>(png_get_io_ptr(png));
    if (size > self->rest.size()) png_error(png, too_early);
    std::memcpy(to, self->rest.data(), size);
    self->rest = self->rest.subspan(size);
  }

  /// libpng calls it for each row of each pass once the row is unpacked.
  static void on_row(png_structp png, png_row_infop, png_bytep) {
    ++static_cast<Reader*>(png_get_io_ptr(png))->rows;
  }

  /// Whether only the end of the file is missing or wrong: all rows are there and their checksums, where
  /// there are any, were right.
  bool only_lacks_its_end() const {
    const std::string_view reason = message;
    return rows == all_rows() &&
           (reason == too_early || reason == "Not enough image data" || reason.starts_with("IEND"));
  }

  int64_t all_rows() const {
    const png_uint_32 width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    if (png_get_interlace_type(png, info) == PNG_INTERLACE_NONE) return height;
    int64_t count = 0;
    for (int pass = 0; pass < PNG_INTERLACE_ADAM7_PASSES; ++pass)
      if (PNG_PASS_COLS(width, pass) > 0) count += PNG_PASS_ROWS(height, pass);
    return count;
  }

  static constexpr char too_early[] = "the file ends too early";
  png_structp png = nullptr;
  png_infop info = nullptr;
  Bytes rest;
  int64_t rows = 0;
  char message[128] = "";
};

/// ImageMagick's way to keep EXIF: a text with a name, a length and hexadecimal digits, a line each.
std::vector<uint8_t> from_raw_profile(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const size_t end = text.find('\n');
    if (end == text.npos) return {};
    text.remove_prefix(end + 1);
  }
  std::vector<uint8_t> bytes;
  int high = -1;
  for (const char character : text) {
    if (std::isspace(static_cast<unsigned char>(character))) continue;
    uint8_t digit = 0;
    if (std::from_chars(&character, &character + 1, digit, 16).ec != std::errc{}) return {};
    if (high >= 0) bytes.push_back(static_cast<uint8_t>(16 * high + digit));
    high = high < 0 ? digit : -1;
  }
  return bytes;
}

int orientation_of(png_structp png, png_infop info) {
  Bytes exif;
  png_unknown_chunkp chunks = nullptr;
  const int chunk_count = png_get_unknown_chunks(png, info, &chunks);
  if (chunk_count > 0) exif = {chunks[0].data, chunks[0].size};  // no other kind is kept
  std::vector<uint8_t> profile;
  Bytes xmp;
  png_textp texts = nullptr;
  const int count = png_get_text(png, info, &texts, nullptr);
  for (const png_text& text : std::span(texts, count)) {
    const std::string_view key = text.key;
    const size_t size = std::max(text.text_length, text.itxt_length);
    const std::string_view content(text.text, text.text ? size : 0);
    if (key == "Raw profile type exif") profile = from_raw_profile(content);
    if (key == "XML:com.adobe.xmp") xmp = {reinterpret_cast<const uint8_t*>(content.data()), content.size()};
  }
  return orientation(exif.empty() ? Bytes(profile) : exif, xmp);
}

}  // namespace

Pixels decode_png(const Source& source) {
  Reader reader(source.bytes);
  const png_structp png = reader.png;
  const png_infop info = reader.info;
  int passes = 1;
  const bool header_read = reader.run([&] {
    png_set_read_fn(png, &reader, Reader::on_read);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // make_pixels limits the size
    constexpr size_t unpacked_text = 1 << 24;
    png_set_chunk_malloc_max(png, source.bytes.size() + unpacked_text);  // a header can claim gigabytes
    // As it stands in the file: libpng itself refuses blocks that begin with a name, as in JPEG files.
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_ALWAYS, reinterpret_cast<png_const_bytep>("eXIf"), 1);
    png_read_info(png, info);
    png_set_expand(png);    // palettes, less than 8 bits, tRNS
    png_set_strip_16(png);  // the high byte, as Pillow
    png_set_gray_to_rgb(png);
    png_set_read_user_transform_fn(png, Reader::on_row);
    passes = png_set_interlace_handling(png);
  });
  if (!header_read) damaged(source, reader.message);

  const bool alpha =
      (png_get_color_type(png, info) & PNG_COLOR_MASK_ALPHA) || png_get_valid(png, info, PNG_INFO_tRNS);
  Pixels pixels =
      make_pixels(source, png_get_image_width(png, info), png_get_image_height(png, info), alpha ? 4 : 3);
  const size_t row_bytes = static_cast<size_t>(pixels.width) * pixels.channels;
  const bool image_read = reader.run([&] {
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) != row_bytes) png_error(png, "unexpected row size");
    for (int pass = 0; pass < passes; ++pass)
      for (int y = 0; y < pixels.height; ++y) png_read_row(png, &pixels.data[y * row_bytes], nullptr);
    png_read_end(png, info);
  });
  if (!image_read && !reader.only_lacks_its_end()) damaged(source, reader.message);
  pixels.orientation = orientation_of(png, info);
  return pixels;
}

}  // namespace glimpse::detail
