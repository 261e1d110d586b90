#include "glimpse/engine/kept_grids.h"

#include <algorithm>

namespace glimpse {

std::vector<std::vector<int64_t>> by_segment(std::span<const Segment> segments,
                                             std::span<const int64_t> tokens) {
  std::vector<std::vector<int64_t>> out(segments.size());
  const int64_t total = total_tokens(segments);
  for (const int64_t token : tokens)
    if (token < total) {
      const int64_t segment = place_of(segments, token).segment;
      out[segment].push_back(token - segments[segment].first);
    }
  return out;
}

std::vector<KeptGrid> kept_grids(std::span<const Segment> segments,
                                 const std::vector<std::vector<int64_t>>& keep, int64_t medium) {
  std::vector<KeptGrid> grids;
  for (size_t i = 0; i < segments.size(); ++i)
    if (segments[i].medium == medium)
      grids.push_back({segments[i].rows, segments[i].cols, keep.at(i), segments[i].area});
  return grids;
}

bool shares_media(std::span<const Segment> segments) {
  return std::ssize(segments) > media_count(segments);
}

void note_media(nlohmann::json& line, std::span<const Segment> segments,
                const std::function<bool(int64_t medium)>& is_video) {
  const auto of_video = [&](const Segment& grid) { return is_video(grid.medium); };
  const bool videos = std::ranges::any_of(segments, of_video);
  if (!videos && !shares_media(segments)) return;
  for (const Segment& grid : segments) {
    line["medium"].push_back(grid.medium);
    if (videos) line["seconds"].push_back(of_video(grid) ? nlohmann::json(grid.seconds) : nlohmann::json());
  }
}

}  // namespace glimpse
