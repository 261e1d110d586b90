#include "glimpse/engine/kept_pictures.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <optional>

#include "glimpse/image/resize.h"
#include "glimpse/image/video_out.h"

namespace glimpse {
namespace {

Image drawn(const Image& frame, std::span<const KeptGrid> grids, KeptStyle style) {
  return style == KeptStyle::mask ? kept_mask(grids, frame.width, frame.height) : draw_kept(frame, grids);
}

/// Which of the grids shows each frame.
class Slices {
 public:
  Slices(const ShownFrames& shown, std::span<const KeptGrid> grids, const std::string& name) : grids_(grids) {
    check(!grids.empty() && grids.size() <= shown.indices.size(), name, ": ", grids.size(),
          " token grids are not those of the ", shown.indices.size(), " frames that are shown");
    length_ = (shown.indices.size() + grids.size() - 1) / grids.size();
  }
  size_t first_frame(size_t grid) const { return grid * length_; }
  std::span<const KeptGrid> at(size_t frame) const {
    return grids_.subspan(std::min(frame / length_, grids_.size() - 1), 1);
  }

 private:
  std::span<const KeptGrid> grids_;
  size_t length_ = 1;  // in frames
};

Image sheet(const Video& video, std::span<const KeptGrid> grids, KeptStyle style) {
  constexpr double most_pixels = 16e6;
  const ShownFrames shown = shown_frames(video);
  const Slices slices(shown, grids, video.source->name());
  std::vector<int64_t> indices;
  for (size_t grid = 0; grid < grids.size(); ++grid)
    indices.push_back(shown.indices[std::min(slices.first_frame(grid), shown.indices.size() - 1)]);
  const VideoInfo& info = video.source->info();
  const double all = static_cast<double>(info.width) * info.height * static_cast<double>(grids.size());
  const double scale = std::min(1.0, std::sqrt(most_pixels / all));
  std::vector<Image> tiles;
  video.source->read(indices, [&](size_t i, const Image& frame) {
    const Size size = scaled(frame, scale);
    const Image tile = scale < 1 ? resize(frame, size.width, size.height) : frame;
    tiles.push_back(drawn(tile, grids.subspan(i, 1), style));
  });
  return contact_sheet(tiles, static_cast<int>(std::ceil(std::sqrt(static_cast<double>(tiles.size())))));
}

void save_frames(const Video& video, std::span<const KeptGrid> grids, KeptStyle style,
                 const std::filesystem::path& path) {
  constexpr size_t at_once = 16;  // frames in memory; each reading may begin at an earlier key frame
  const ShownFrames shown = shown_frames(video);
  const Slices slices(shown, grids, video.source->name());
  std::deque<Image> ready;
  size_t next = 0;
  save_video(path, shown.fps, [&]() -> std::optional<Image> {
    if (ready.empty() && next < shown.indices.size()) {
      const size_t count = std::min(at_once, shown.indices.size() - next);
      video.source->read(std::span(shown.indices).subspan(next, count), [&](size_t i, const Image& frame) {
        ready.push_back(drawn(frame, slices.at(next + i), style));
      });
      next += count;
    }
    if (ready.empty()) return std::nullopt;
    Image frame = std::move(ready.front());
    ready.pop_front();
    return frame;
  });
}

}  // namespace

ShownFrames shown_frames(const Video& video) {
  try {
    // Which frames are shown does not depend on how many pixels a visual token has.
    const VideoSample sample = sample_video(video.source->info(), video.options, 1);
    return {sample.indices, sample.fps};
  } catch (const Error& error) {
    fail(video.source->name(), ": ", error.what());
  }
}

Image kept_picture(const Medium& medium, std::span<const KeptGrid> grids, KeptStyle style) {
  if (const auto* const video = std::get_if<Video>(&medium)) return sheet(*video, grids, style);
  return drawn(std::get<Image>(medium), grids, style);
}

void save_kept(const Medium& medium, std::span<const KeptGrid> grids, KeptStyle style,
               const std::filesystem::path& path) {
  const auto* const image = std::get_if<Image>(&medium);
  check(!image || !is_video_name(path), path.string(), ": a picture is written as PNG, not as a video");
  if (image && style == KeptStyle::mask)
    save_mask_png(grids, image->width, image->height, path);  // in grey
  else if (is_video_name(path))
    save_frames(std::get<Video>(medium), grids, style, path);
  else
    save_png(kept_picture(medium, grids, style), path);
}

}  // namespace glimpse
