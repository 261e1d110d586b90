#include <png.h>

#include <csetjmp>
#include <cstring>

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
    if (size > self->rest.size()) png_error(png, "the file ends too early");
    std::memcpy(to, self->rest.data(), size);
    self->rest = self->rest.subspan(size);
  }

  png_structp png = nullptr;
  png_infop info = nullptr;
  Bytes rest;
  char message[128] = "";
};

}  // namespace

Pixels decode_png(const Source& source) {
  Reader reader(source.bytes);
  const png_structp png = reader.png;
  const png_infop info = reader.info;
  int passes = 1;
  const bool header_read = reader.run([&] {
    png_set_read_fn(png, &reader, Reader::on_read);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // make_pixels limits the size
    png_read_info(png, info);
    png_set_expand(png);    // palettes, less than 8 bits, tRNS
    png_set_strip_16(png);  // the high byte, as Pillow
    png_set_gray_to_rgb(png);
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
  if (!image_read) damaged(source, reader.message);

  png_uint_32 exif_size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(png, info, &exif_size, &exif)) pixels.orientation = exif_orientation({exif, exif_size});
  return pixels;
}

}  // namespace glimpse::detail
