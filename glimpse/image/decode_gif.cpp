#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

int read_bytes(GifFileType* gif, GifByteType* to, int size) {
  auto& rest = *static_cast<Bytes*>(gif->UserData);
  const size_t count = std::min<size_t>(size, rest.size());
  if (count > 0) std::memcpy(to, rest.data(), count);
  rest = rest.subspan(count);
  return static_cast<int>(count);
}

/// Reads up to the first frame's pixels; the frame's transparent colour or -1.
int read_to_first_frame(GifFileType* gif, const Source& source) {
  int transparent = NO_TRANSPARENT_COLOR;
  while (true) {
    GifRecordType record = UNDEFINED_RECORD_TYPE;
    if (DGifGetRecordType(gif, &record) == GIF_ERROR) damaged(source, GifErrorString(gif->Error));
    if (record == TERMINATE_RECORD_TYPE) damaged(source, "it holds no picture");
    if (record == IMAGE_DESC_RECORD_TYPE) break;
    int code = 0;
    GifByteType* block = nullptr;
    for (int status = DGifGetExtension(gif, &code, &block);; status = DGifGetExtensionNext(gif, &block)) {
      if (status == GIF_ERROR) damaged(source, GifErrorString(gif->Error));
      if (!block) break;
      GraphicsControlBlock control;
      if (code == GRAPHICS_EXT_FUNC_CODE && DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK)
        transparent = control.TransparentColor;
    }
  }
  if (DGifGetImageDesc(gif) == GIF_ERROR) damaged(source, GifErrorString(gif->Error));
  return transparent;
}

using Colours = std::array<std::array<uint8_t, 4>, 256>;

/// Red, green, blue and alpha of each index; grey levels where the file has no colour table.
Colours colours_of(const GifFileType& gif, int transparent) {
  const ColorMapObject* table = gif.Image.ColorMap ? gif.Image.ColorMap : gif.SColorMap;
  Colours colours;
  for (int i = 0; i < static_cast<int>(colours.size()); ++i) {
    const auto grey = static_cast<uint8_t>(i);
    GifColorType colour{grey, grey, grey};
    if (table) colour = i < table->ColorCount ? table->Colors[i] : GifColorType{0, 0, 0};
    const uint8_t alpha = i == transparent ? 0 : 255;
    colours[i] = {colour.Red, colour.Green, colour.Blue, alpha};
  }
  return colours;
}

/// The row that the i-th stored row of an interlaced picture belongs to.
std::vector<int> row_order(int height, bool interlaced) {
  struct Pass {
    int start, step;
  };
  const std::vector<Pass> passes =
      interlaced ? std::vector<Pass>{{0, 8}, {4, 8}, {2, 4}, {1, 2}} : std::vector<Pass>{{0, 1}};
  std::vector<int> order;
  for (const auto [start, step] : passes)
    for (int row = start; row < height; row += step) order.push_back(row);
  return order;
}

}  // namespace

Pixels decode_gif(const Source& source) {
  Bytes rest = source.bytes;
  int error = 0;
  const auto close = [](GifFileType* file) { DGifCloseFile(file, nullptr); };
  const std::unique_ptr<GifFileType, decltype(close)> gif(DGifOpen(&rest, read_bytes, &error), close);
  if (!gif) damaged(source, GifErrorString(error));
  const int transparent = read_to_first_frame(gif.get(), source);
  const GifImageDesc& frame = gif->Image;
  if (frame.Width < 1 || frame.Height < 1) damaged(source, "its first frame is empty");

  // Like Pillow, grow the canvas when the frame reaches beyond it. What the frame leaves open is transparent,
  // or colour 0 where no colour is.
  Pixels canvas = make_pixels(source, std::max<int64_t>(gif->SWidth, int64_t{frame.Left} + frame.Width),
                              std::max<int64_t>(gif->SHeight, int64_t{frame.Top} + frame.Height), 4);
  const Colours colours = colours_of(*gif, transparent);
  const auto put = [&colours](uint8_t* to, int index) { std::ranges::copy(colours[index], to); };
  if (frame.Width < canvas.width || frame.Height < canvas.height)
    for (size_t at = 0; at < canvas.data.size(); at += 4) put(&canvas.data[at], std::max(transparent, 0));
  std::vector<GifPixelType> line(frame.Width);
  for (const int row : row_order(frame.Height, frame.Interlace)) {
    if (DGifGetLine(gif.get(), line.data(), frame.Width) == GIF_ERROR)
      damaged(source, GifErrorString(gif->Error));
    uint8_t* to = &canvas.data[((static_cast<size_t>(frame.Top) + row) * canvas.width + frame.Left) * 4];
    for (const int index : line) {
      put(to, index);
      to += 4;
    }
  }
  return canvas;
}

}  // namespace glimpse::detail
