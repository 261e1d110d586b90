#include <tiffio.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

struct Stream {
  Bytes bytes;
  size_t position = 0;
  char message[160] = "unknown error";
};

tmsize_t read_bytes(thandle_t handle, void* to, tmsize_t size) {
  auto& stream = *static_cast<Stream*>(handle);
  if (size <= 0 || stream.position >= stream.bytes.size()) return 0;
  const size_t count = std::min<size_t>(size, stream.bytes.size() - stream.position);
  std::memcpy(to, stream.bytes.data() + stream.position, count);
  stream.position += count;
  return static_cast<tmsize_t>(count);
}

toff_t seek(thandle_t handle, toff_t offset, int origin) {
  auto& stream = *static_cast<Stream*>(handle);
  const size_t base = origin == SEEK_SET ? 0 : origin == SEEK_CUR ? stream.position : stream.bytes.size();
  return stream.position = base + offset;
}

int on_error(TIFF*, void* handle, const char*, const char* text, va_list arguments) {
  auto& stream = *static_cast<Stream*>(handle);
  std::vsnprintf(stream.message, sizeof stream.message, text, arguments);
  return 1;
}

using Tiff = std::unique_ptr<TIFF, decltype(&TIFFClose)>;

Tiff open(const Source& source, Stream& stream) {
  const std::unique_ptr<TIFFOpenOptions, decltype(&TIFFOpenOptionsFree)> options(TIFFOpenOptionsAlloc(),
                                                                                 TIFFOpenOptionsFree);
  constexpr int64_t widest_pixel = 8, tables = 1 << 20;
  TIFFOpenOptionsSetMaxSingleMemAlloc(options.get(), source.max_pixels * widest_pixel + tables);
  TIFFOpenOptionsSetErrorHandlerExtR(options.get(), on_error, &stream);
  TIFFOpenOptionsSetWarningHandlerExtR(
      options.get(), [](TIFF*, void*, const char*, const char*, va_list) { return 1; }, nullptr);
  return {
      TIFFClientOpenExt(
          source.name.c_str(), "rm", &stream, read_bytes,
          [](thandle_t, void*, tmsize_t) { return tmsize_t{0}; }, seek, [](thandle_t) { return 0; },
          [](thandle_t handle) { return static_cast<toff_t>(static_cast<Stream*>(handle)->bytes.size()); },
          nullptr, nullptr, options.get()),
      TIFFClose};
}

/// libtiff multiplies colours by alpha; this undoes it.
uint8_t straight(uint32_t colour, uint32_t alpha) {
  return static_cast<uint8_t>(alpha == 0 ? 0 : std::min(255u, (colour * 255 + alpha / 2) / alpha));
}

}  // namespace

Pixels decode_tiff(const Source& source) {
  Stream stream{source.bytes};
  const Tiff tiff = open(source, stream);
  if (!tiff) damaged(source, stream.message);
  uint32_t width = 0, height = 0;
  uint16_t orientation = ORIENTATION_TOPLEFT;
  TIFFGetField(tiff.get(), TIFFTAG_IMAGEWIDTH, &width);
  TIFFGetField(tiff.get(), TIFFTAG_IMAGELENGTH, &height);
  TIFFGetFieldDefaulted(tiff.get(), TIFFTAG_ORIENTATION, &orientation);
  if (orientation < 1 || orientation > 8) orientation = ORIENTATION_TOPLEFT;
  Pixels pixels = make_pixels(source, width, height, 4);

  std::vector<uint32_t> raster(static_cast<size_t>(width) * height);
  char reason[1024] = "";
  if (!TIFFRGBAImageOK(tiff.get(), reason)) damaged(source, reason);
  // Asking for the orientation that the file has gives the rows and columns as stored.
  constexpr int stop_on_error = 1;
  if (!TIFFReadRGBAImageOriented(tiff.get(), width, height, raster.data(), orientation, stop_on_error))
    damaged(source, stream.message);
  uint8_t* to = pixels.data.data();
  for (const uint32_t value : raster) {
    const uint32_t alpha = TIFFGetA(value);
    *to++ = straight(TIFFGetR(value), alpha);
    *to++ = straight(TIFFGetG(value), alpha);
    *to++ = straight(TIFFGetB(value), alpha);
    *to++ = static_cast<uint8_t>(alpha);
  }
  pixels.orientation = orientation;
  return pixels;
}

}  // namespace glimpse::detail
