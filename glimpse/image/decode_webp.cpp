#include <webp/decode.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

uint32_t little_endian(Bytes bytes, size_t offset, int count) {
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) value |= static_cast<uint32_t>(bytes[offset + i]) << (8 * i);
  return value;
}

/// The content of the first RIFF chunk of that name; empty when there is none.
Bytes find_chunk(Bytes file, std::string_view name) {
  constexpr size_t file_header = 12, chunk_header = 8;
  for (size_t at = file_header; at + chunk_header <= file.size();) {
    const size_t size = little_endian(file, at + 4, 4);
    const Bytes content = file.subspan(at + chunk_header);
    if (std::memcmp(&file[at], name.data(), 4) == 0) return content.first(std::min(size, content.size()));
    if (size >= content.size()) break;
    at += chunk_header + size + size % 2;
  }
  return {};
}

/// Decodes into `rgba` of a canvas `canvas_width` wide, at its pixel (x, y); the frame must fit there.
bool decode_frame(Bytes frame, const WebPBitstreamFeatures& info, Pixels& canvas, int x, int y) {
  const int n = canvas.channels;
  const size_t stride = static_cast<size_t>(canvas.width) * n;
  const size_t start = y * stride + static_cast<size_t>(x) * n;
  const auto decode = n == 4 ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  return x + info.width <= canvas.width && y + info.height <= canvas.height &&
         decode(frame.data(), frame.size(), &canvas.data[start], canvas.data.size() - start,
                static_cast<int>(stride)) != nullptr;
}

}  // namespace

Pixels decode_webp(const Source& source) {
  WebPBitstreamFeatures info;
  if (WebPGetFeatures(source.bytes.data(), source.bytes.size(), &info) != VP8_STATUS_OK)
    damaged(source, "its header cannot be read");
  // What an animation's first frame leaves open is transparent, black where the file has no alpha.
  Pixels canvas = make_pixels(source, info.width, info.height, info.has_alpha ? 4 : 3);
  Bytes frame = source.bytes;
  int x = 0, y = 0;
  if (info.has_animation) {
    constexpr size_t frame_header = 16;
    frame = find_chunk(source.bytes, "ANMF");
    if (frame.size() <= frame_header) damaged(source, "its first frame is missing");
    x = static_cast<int>(2 * little_endian(frame, 0, 3));
    y = static_cast<int>(2 * little_endian(frame, 3, 3));
    frame = frame.subspan(frame_header);
    if (WebPGetFeatures(frame.data(), frame.size(), &info) != VP8_STATUS_OK)
      damaged(source, "the header of its first frame cannot be read");
  }
  if (!decode_frame(frame, info, canvas, x, y)) damaged(source, "its pixels cannot be decoded");
  canvas.orientation = orientation(find_chunk(source.bytes, "EXIF"), find_chunk(source.bytes, "XMP "));
  return canvas;
}

}  // namespace glimpse::detail
