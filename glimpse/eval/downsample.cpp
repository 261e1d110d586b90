#include "glimpse/eval/downsample.h"

#include <algorithm>
#include <cmath>

#include "glimpse/engine/kept_grids.h"
#include "glimpse/image/resize.h"

namespace glimpse {

PrunerChain compared_pruners(const std::string& method, const PrunerContext& context) {
  return make_pruners(method == kDownsample ? "none" : method, context);
}

Downsampled downsampled(const Request& request, const Vlm& model, int64_t side) {
  check(std::ranges::none_of(request.media, is_video), kDownsample,
        ": makes pictures smaller, no videos; leave it out of the methods");
  const std::vector<Segment> segments =
      model.prompt(request.messages, request.media, request.bounds).segments;
  check(!shares_media(segments), kDownsample, ": pictures in tiles are as large as they are");
  const auto room = request.budget.of(segments);
  check(room.has_value(), kDownsample, ": needs a budget, as in ", kDownsample, "@0.1");
  Downsampled out{request, total_tokens(segments)};
  out.request.prune = "none";
  out.request.bounds.min_pixels = 1;
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& own = segments[i];
    const int64_t most = std::max<int64_t>((*room)[i], 1);
    const double scale = std::sqrt(static_cast<double>(most) / static_cast<double>(own.count()));
    const int64_t rows =
        std::clamp<int64_t>(std::llround(static_cast<double>(own.rows) * scale), 1, std::min(most, own.rows));
    const int64_t cols = std::clamp<int64_t>(most / rows, 1, own.cols);
    out.request.media[i] = resize(std::get<Image>(request.media[i]), static_cast<int>(cols * side),
                                  static_cast<int>(rows * side));
  }
  return out;
}

}  // namespace glimpse
