#include <turbojpeg.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

/// Whether the last scan of the file is closed by an end-of-image marker.
bool has_end(Bytes bytes) {
  constexpr uint8_t scan[] = {0xFF, 0xDA};
  constexpr uint8_t end[] = {0xFF, 0xD9};
  const auto last_scan = std::find_end(bytes.begin(), bytes.end(), std::begin(scan), std::end(scan));
  return std::search(last_scan, bytes.end(), std::begin(end), std::end(end)) != bytes.end();
}

/// Print files store inks inverted (Adobe's way), whatever their markers say; Pillow assumes the same.
void inverted_cmyk_to_rgb(const std::vector<uint8_t>& cmyk, uint8_t* rgb) {
  for (size_t i = 0; i < cmyk.size(); i += 4) {
    const int light = cmyk[i + 3];
    for (size_t c = 0; c < 3; ++c)
      *rgb++ = static_cast<uint8_t>(light - ((255 - cmyk[i + c]) * light + 127) / 255);
  }
}

}  // namespace

Pixels decode_jpeg(const Source& source) {
  const std::unique_ptr<void, decltype(&tjDestroy)> decoder(tjInitDecompress(), tjDestroy);
  invariant(decoder != nullptr, "libturbojpeg cannot start");
  const uint8_t* bytes = source.bytes.data();
  int width = 0, height = 0, subsampling = 0, colours = 0;
  // It also fails on uncommon chroma subsampling, but only after the size is known; decoding copes with
  // those.
  tjDecompressHeader3(decoder.get(), bytes, source.bytes.size(), &width, &height, &subsampling, &colours);
  if (width <= 0 || height <= 0) damaged(source, tjGetErrorStr2(decoder.get()));

  Pixels pixels = make_pixels(source, width, height, 3);
  const bool cmyk = colours == TJCS_CMYK || colours == TJCS_YCCK;
  std::vector<uint8_t> inks(cmyk ? static_cast<size_t>(width) * height * 4 : 0);
  const int status =
      tjDecompress2(decoder.get(), bytes, source.bytes.size(), cmyk ? inks.data() : pixels.data.data(), width,
                    0, height, cmyk ? TJPF_CMYK : TJPF_RGB, TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS);
  if (status != 0) {
    const std::string_view message = tjGetErrorStr2(decoder.get());
    const bool harmless = tjGetErrorCode(decoder.get()) == TJERR_WARNING &&
                          message.find("extraneous bytes before marker") != message.npos &&
                          has_end(source.bytes);
    if (!harmless) damaged(source, message);
  }
  if (cmyk) inverted_cmyk_to_rgb(inks, pixels.data.data());
  pixels.orientation = exif_orientation(source.bytes);
  return pixels;
}

}  // namespace glimpse::detail
