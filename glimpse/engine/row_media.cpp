#include "glimpse/engine/row_media.h"

#include <functional>

namespace glimpse {

namespace {

bool can_be_read(const std::function<void()>& read) {
  try {
    read();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

Size size_of(const Medium& medium) {
  if (const Image* image = std::get_if<Image>(&medium)) return {image->height, image->width};
  const VideoInfo& info = std::get<Video>(medium).source->info();
  return {info.height, info.width};
}

std::vector<Box> normalised(const std::vector<Box>& boxes, Size size) {
  std::vector<Box> out;
  for (const Box& box : boxes) out.push_back(normalise_box(box, size.width, size.height));
  return out;
}

Medium load_medium(const std::filesystem::path& path, bool is_video, const ImageBounds& bounds,
                   const VideoOptions& video) {
  Video opened{nullptr, video};
  try {
    if (!is_video) return load_image(path, bounds.decode_options());
    opened.source = open_video(path);
  } catch (const Error&) {
    // That it is the other thing says more than that it is not this one.
    std::error_code ignored;
    const bool is_file = std::filesystem::is_regular_file(path, ignored);
    check(!is_file || !is_video || !can_be_read([&] { load_image(path); }), path.string(),
          ": is a picture, not a video; name it as an image (--image)");
    check(!is_file || is_video || !can_be_read([&] { open_video(path); }), path.string(),
          ": is a video, not a picture; name it as a video (--video)");
    throw;
  }
  VideoOptions& own = opened.options;
  if (!own.min_pixels) own.min_pixels = bounds.min_pixels;
  if (!own.max_pixels) own.max_pixels = bounds.max_pixels;
  return opened;
}

RowMedia load_row_media(const std::vector<std::filesystem::path>& images,
                        const std::vector<std::filesystem::path>& videos, const std::vector<Box>& boxes,
                        const ImageBounds& bounds, const VideoOptions& video) {
  RowMedia out;
  for (const auto& path : images) out.media.push_back(load_medium(path, false, bounds, video));
  for (const auto& path : videos) out.media.push_back(load_medium(path, true, bounds, video));
  for (const Medium& medium : out.media) out.parts.push_back(part_of(medium));
  out.boxes.resize(out.media.size());
  if (!out.media.empty()) out.boxes[0] = normalised(boxes, size_of(out.media[0]));
  return out;
}

}  // namespace glimpse
