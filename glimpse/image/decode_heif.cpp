#include <libheif/heif.h>

#include <algorithm>
#include <memory>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

void check_done(const Source& source, const heif_error& error) {
  if (error.code != heif_error_Ok) damaged(source, error.message);
}

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

Owned<const heif_image_handle> primary_picture(const Source& source, heif_context* context) {
  heif_image_handle* handle = nullptr;
  check_done(source, heif_context_get_primary_image_handle(context, &handle));
  return {handle, heif_image_handle_release};
}

/// Colours as before they were multiplied by alpha.
void divide_by_alpha(std::vector<uint8_t>& rgba) {
  for (size_t i = 0; i < rgba.size(); i += 4)
    for (size_t c = 0; c < 3; ++c) {
      const int alpha = rgba[i + 3];
      if (alpha > 0) rgba[i + c] = static_cast<uint8_t>(std::min(255, rgba[i + c] * 255 / alpha));
    }
}

}  // namespace

/// AVIF and HEIC. Their own turns and crops are part of the picture, and EXIF has no say (as in Pillow).
Pixels decode_heif(const Source& source) {
  const Owned<heif_context> context(heif_context_alloc(), heif_context_free);
  const Owned<heif_decoding_options> options(heif_decoding_options_alloc(), heif_decoding_options_free);
  invariant(context && options, "libheif cannot start");
  heif_context_set_max_decoding_threads(context.get(), 0);  // this one
  options->convert_hdr_to_8bit = 1;
  options->strict_decoding = 1;
  check_done(source, heif_context_read_from_memory_without_copy(context.get(), source.bytes.data(),
                                                                source.bytes.size(), nullptr));
  const auto handle = primary_picture(source, context.get());
  const bool alpha = heif_image_handle_has_alpha_channel(handle.get());
  const int width = heif_image_handle_get_width(handle.get());
  const int height = heif_image_handle_get_height(handle.get());
  check_size(source, width, height);

  heif_image* decoded = nullptr;
  const auto chroma = alpha ? heif_chroma_interleaved_RGBA : heif_chroma_interleaved_RGB;
  check_done(source, heif_decode_image(handle.get(), &decoded, heif_colorspace_RGB, chroma, options.get()));
  const Owned<const heif_image> image(decoded, heif_image_release);
  int stride = 0;
  const uint8_t* rows = heif_image_get_plane_readonly(image.get(), heif_channel_interleaved, &stride);
  if (!rows || heif_image_get_primary_width(image.get()) != width ||
      heif_image_get_primary_height(image.get()) != height)
    damaged(source, "its pixels are not of the size that its header gives");

  Pixels pixels = make_pixels(source, width, height, alpha ? 4 : 3);
  const size_t row_bytes = static_cast<size_t>(width) * pixels.channels;
  for (int y = 0; y < height; ++y)
    std::copy_n(rows + static_cast<size_t>(y) * stride, row_bytes, &pixels.data[y * row_bytes]);
  if (alpha && heif_image_handle_is_premultiplied_alpha(handle.get())) divide_by_alpha(pixels.data);
  return pixels;
}

}  // namespace glimpse::detail
