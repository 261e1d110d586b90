#include "glimpse/image/video_out.h"

#include <algorithm>

#include "glimpse/base/ascii.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/image/video_module.h"

namespace glimpse {
namespace {

/// FFmpeg's name of what a file of that ending is, or nullptr.
const char* container_of(const std::filesystem::path& path) {
  const std::string ending = lowered(path.extension().string());
  return ending == ".mp4" || ending == ".m4v" ? "mp4"
         : ending == ".mov"                   ? "mov"
         : ending == ".mkv"                   ? "matroska"
                                              : nullptr;
}

}  // namespace

Image contact_sheet(std::span<const Image> frames, int columns) {
  constexpr int gap = 2;
  constexpr uint8_t grey = 128;
  check(!frames.empty() && columns > 0, "a contact sheet of ", frames.size(), " frames, ", columns,
        " in a row");
  const int width = frames[0].width, height = frames[0].height;
  const auto count = static_cast<int64_t>(frames.size());
  const int64_t across = std::min<int64_t>(columns, count), down = (count + across - 1) / across;
  const int64_t sheet_width = across * (width + gap) - gap, sheet_height = down * (height + gap) - gap;
  constexpr int64_t most = int64_t{1} << 30;  // pixels
  check(sheet_width <= most / sheet_height, "a contact sheet of ", sheet_width, " x ", sheet_height,
        " pixels is too large");
  Image sheet{static_cast<int>(sheet_width), static_cast<int>(sheet_height),
              std::vector<uint8_t>(size_t{3} * sheet_width * sheet_height, grey)};
  for (int64_t i = 0; i < count; ++i) {
    const Image& frame = frames[i];
    check(frame.width == width && frame.height == height, "a contact sheet of frames of ", width, " x ",
          height, " and ", frame.width, " x ", frame.height, " pixels");
    const int64_t left = i % across * (width + gap), top = i / across * (height + gap);
    for (int64_t y = 0; y < height; ++y)
      std::copy_n(&frame.rgb[y * width * 3], int64_t{3} * width,
                  &sheet.rgb[((top + y) * sheet_width + left) * 3]);
  }
  return sheet;
}

bool is_video_name(const std::filesystem::path& path) {
  return container_of(path) != nullptr;
}

void save_video(const std::filesystem::path& path, double fps,
                const std::function<std::optional<Image>()>& next) {
  const std::string name = path.string();
  const char* const container = container_of(path);
  check(container != nullptr, name, ": a video is written as .mp4, .mov or .mkv");
  check(fps >= 1e-3 && fps <= 1000, name, ": ", fps,
        " frames per second cannot be written; 0.001 to 1000 can");
  const detail::VideoModule& module = detail::video_module();
  AtomicFile file(path);
  module.write({file.stream(), name, container, fps}, next);
  file.commit();
}

void save_video(const std::filesystem::path& path, double fps, std::span<const Image> frames) {
  size_t i = 0;
  save_video(path, fps, [&]() -> std::optional<Image> {
    if (i == frames.size()) return std::nullopt;
    return frames[i++];
  });
}

}  // namespace glimpse
