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
  bool lost_colours = false;
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

/// Without its colour table, libtiff takes an indexed picture for grey and only warns.
int on_warning(TIFF*, void* handle, const char*, const char* text, va_list arguments) {
  char message[160] = "";
  std::vsnprintf(message, sizeof message, text, arguments);
  if (std::strstr(message, "ColorMap")) static_cast<Stream*>(handle)->lost_colours = true;
  return 1;
}

using Tiff = std::unique_ptr<TIFF, decltype(&TIFFClose)>;

Tiff open(const Source& source, Stream& stream) {
  const std::unique_ptr<TIFFOpenOptions, decltype(&TIFFOpenOptionsFree)> options(TIFFOpenOptionsAlloc(),
                                                                                 TIFFOpenOptionsFree);
  constexpr int64_t widest_pixel = 8, tables = 1 << 20;
  TIFFOpenOptionsSetMaxSingleMemAlloc(options.get(), source.max_pixels * widest_pixel + tables);
  TIFFOpenOptionsSetErrorHandlerExtR(options.get(), on_error, &stream);
  TIFFOpenOptionsSetWarningHandlerExtR(options.get(), on_warning, &stream);
  return {
      TIFFClientOpenExt(
          source.name.c_str(), "rm", &stream, read_bytes,
          [](thandle_t, void*, tmsize_t) { return tmsize_t{0}; }, seek, [](thandle_t) { return 0; },
          [](thandle_t handle) { return static_cast<toff_t>(static_cast<Stream*>(handle)->bytes.size()); },
          nullptr, nullptr, options.get()),
      TIFFClose};
}

/// What the samples beside the colours mean.
enum class Alpha : uint8_t { none, straight, premultiplied };

/// Reads what the file says and has libtiff take any alpha for premultiplied, which it copies as it is:
/// straight alpha it would multiply into RGB (not into grey) and round.
Alpha claim_alpha(TIFF* tiff) {
  uint16_t photometric = 0, samples = 1, count = 0;
  uint16_t* kinds = nullptr;
  TIFFGetField(tiff, TIFFTAG_PHOTOMETRIC, &photometric);
  TIFFGetFieldDefaulted(tiff, TIFFTAG_SAMPLESPERPIXEL, &samples);
  TIFFGetField(tiff, TIFFTAG_EXTRASAMPLES, &count, &kinds);
  // Some writers leave the tag out; Pillow, too, then takes the fourth sample for alpha.
  if (count == 0) return photometric == PHOTOMETRIC_RGB && samples == 4 ? Alpha::straight : Alpha::none;
  std::vector<uint16_t> claimed(kinds, kinds + count);
  if (claimed[0] == EXTRASAMPLE_UNSPECIFIED) return Alpha::none;
  const Alpha alpha = claimed[0] == EXTRASAMPLE_ASSOCALPHA ? Alpha::premultiplied : Alpha::straight;
  claimed[0] = EXTRASAMPLE_ASSOCALPHA;
  TIFFSetField(tiff, TIFFTAG_EXTRASAMPLES, count, claimed.data());
  return alpha;
}

/// Divides by alpha, rounding down as Pillow does.
uint8_t divided(uint32_t colour, uint32_t alpha) {
  return static_cast<uint8_t>(alpha == 0 ? 0 : std::min(255u, colour * 255 / alpha));
}

/// Rows and columns as stored, each pixel a number as TIFFGetR and its like read it.
std::vector<uint32_t> read_raster(TIFF* tiff, const Source& source, const Stream& stream,
                                  const Pixels& size) {
  std::vector<uint32_t> raster(static_cast<size_t>(size.width) * size.height);
  constexpr int stop_on_error = 1;
  char reason[1024] = "";
  TIFFRGBAImage reader;
  if (!TIFFRGBAImageOK(tiff, reason) || !TIFFRGBAImageBegin(&reader, tiff, stop_on_error, reason))
    damaged(source, reason);
  const std::unique_ptr<TIFFRGBAImage, decltype(&TIFFRGBAImageEnd)> end(&reader, TIFFRGBAImageEnd);
  reader.req_orientation = reader.orientation;
  if (reader.Bitdepth16To8)  // the high byte, as Pillow, where libtiff rounds
    for (int value = 0; value < 1 << 16; ++value)
      reader.Bitdepth16To8[value] = static_cast<uint8_t>(value >> 8);
  if (!TIFFRGBAImageGet(&reader, raster.data(), size.width, size.height)) damaged(source, stream.message);
  return raster;
}

/// The tag's value, else what an XMP text says.
int orientation_of(TIFF* tiff) {
  uint16_t value = 0;
  if (TIFFGetField(tiff, TIFFTAG_ORIENTATION, &value)) return value >= 1 && value <= 8 ? value : 1;
  uint32_t size = 0;
  const uint8_t* xmp = nullptr;
  if (!TIFFGetField(tiff, TIFFTAG_XMLPACKET, &size, &xmp)) return 1;
  return orientation({}, {xmp, size});
}

}  // namespace

Pixels decode_tiff(const Source& source) {
  Stream stream{source.bytes};
  const Tiff tiff = open(source, stream);
  if (!tiff) damaged(source, stream.message);
  if (stream.lost_colours) damaged(source, "its colour table cannot be read");
  uint32_t width = 0, height = 0;
  TIFFGetField(tiff.get(), TIFFTAG_IMAGEWIDTH, &width);
  TIFFGetField(tiff.get(), TIFFTAG_IMAGELENGTH, &height);
  const Alpha alpha = claim_alpha(tiff.get());
  Pixels pixels = make_pixels(source, width, height, alpha == Alpha::none ? 3 : 4);
  pixels.orientation = orientation_of(tiff.get());
  uint8_t* to = pixels.data.data();
  for (const uint32_t value : read_raster(tiff.get(), source, stream, pixels)) {
    const uint32_t a = TIFFGetA(value);
    for (const uint32_t colour : {TIFFGetR(value), TIFFGetG(value), TIFFGetB(value)})
      *to++ = alpha == Alpha::premultiplied ? divided(colour, a) : static_cast<uint8_t>(colour);
    if (alpha != Alpha::none) *to++ = static_cast<uint8_t>(a);
  }
  return pixels;
}

}  // namespace glimpse::detail
