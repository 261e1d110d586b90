#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "glimpse/image/overlay.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// Of visual tokens by source index, for every segment those that it has, as indices in its grid. Class
/// tokens have no place and are left out.
std::vector<std::vector<int64_t>> by_segment(std::span<const Segment> segments,
                                             std::span<const int64_t> tokens);

/// The grids of one medium with what each keeps: `keep` has a list for every segment (Answer::keep).
std::vector<KeptGrid> kept_grids(std::span<const Segment> segments,
                                 const std::vector<std::vector<int64_t>>& keep, int64_t medium);

/// Whether a medium has several grids, so that a list of them has to say whose each is.
bool shares_media(std::span<const Segment> segments);

/// Adds to a line of answers whose each list of kept tokens is ("medium"), where some have several or there
/// are videos, and when those of videos are seen ("seconds").
void note_media(nlohmann::json& line, std::span<const Segment> segments,
                const std::function<bool(int64_t medium)>& is_video);

}  // namespace glimpse
