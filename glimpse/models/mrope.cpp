#include "glimpse/models/mrope.h"

#include <algorithm>

#include "glimpse/base/check.h"

namespace glimpse {

namespace {

// In float32, as published: at some rates double rounds to another number.
int64_t time_step(int64_t slice, double seconds_per_grid, double tokens_per_second) {
  const float seconds = static_cast<float>(slice) * static_cast<float>(seconds_per_grid);
  return static_cast<int64_t>(seconds * static_cast<float>(tokens_per_second));
}

}  // namespace

MropePositions mrope_positions(const std::vector<int64_t>& ids, const std::vector<Grid>& images,
                               const std::vector<Grid>& videos, const std::vector<double>& seconds_per_grid,
                               const MropeConfig& config) {
  const auto count = static_cast<int64_t>(ids.size());
  MropePositions out;
  out.ids = at::empty({3, count}, at::kLong);
  int64_t* time = out.ids.data_ptr<int64_t>();
  int64_t *row = time + count, *col = row + count;
  size_t image = 0, video = 0;
  for (int64_t i = 0; i < count;) {
    const bool is_image = ids[i] == config.image_token, is_video = ids[i] == config.video_token;
    if (!is_image && !is_video) {
      time[i] = row[i] = col[i] = out.next++;
      ++i;
      continue;
    }
    const std::vector<Grid>& grids = is_image ? images : videos;
    size_t& used = is_image ? image : video;
    check(used < grids.size(), "prompt: more ", is_image ? "image" : "video", " places than the ",
          grids.size(), " given");
    const Grid& grid = grids[used];
    const int64_t rows = grid.h / config.merge, cols = grid.w / config.merge, tokens = grid.t * rows * cols;
    const bool fits = i + tokens <= count && std::all_of(ids.begin() + i, ids.begin() + i + tokens,
                                                         [&](int64_t id) { return id == ids[i]; });
    check(fits, "prompt: image ", used + 1, " needs ", tokens,
          " visual tokens, but the ids hold fewer at place ", i);
    check(is_image || used < seconds_per_grid.size(), "prompt: no seconds per grid for video ", used + 1);
    const double seconds = is_video ? seconds_per_grid[used] : 0.0;
    ++used;
    int64_t largest = out.next;
    for (int64_t t = 0; t < grid.t; ++t)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c, ++i) {
          time[i] = out.next + time_step(t, seconds, config.tokens_per_second);
          row[i] = out.next + r;
          col[i] = out.next + c;
          largest = std::max({largest, time[i], row[i], col[i]});
        }
    out.next = largest + 1;
  }
  check(image == images.size() && video == videos.size(), "prompt: ", images.size(),
        " images were given but it has ", image, " places for them");
  return out;
}

at::Tensor mrope_angles(const at::Tensor& positions, const std::vector<int64_t>& sections,
                        const at::Tensor& frequencies) {
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (size_t s = 0; s < sections.size(); ++s) {
    const at::Tensor own = frequencies.narrow(1, first, sections[s]);
    parts.push_back(positions[static_cast<int64_t>(s) % 3].to(at::kFloat).unsqueeze(1) * own);
    first += sections[s];
  }
  return at::cat(parts, 1);
}

at::Tensor interleaved_components(const std::vector<int64_t>& sections) {
  check(sections.size() == 3, "mrope_section has ", sections.size(), " numbers, expected 3");
  std::vector<int64_t> components(sections[0] + sections[1] + sections[2]);
  for (int64_t pair = 0; pair < std::ssize(components); ++pair)
    if (const int64_t turn = pair % 3; turn > 0 && pair < 3 * sections[turn]) components[pair] = turn;
  return at::tensor(components, at::kLong);
}

at::Tensor interleaved_angles(const at::Tensor& positions, const at::Tensor& components,
                              const at::Tensor& frequencies) {
  return positions.to(at::kFloat).index_select(0, components).t() * frequencies;
}

}  // namespace glimpse
