#include "glimpse/prune/pruner.h"

#include <algorithm>
#include <cmath>

namespace glimpse {

int64_t total_tokens(std::span<const Segment> segments) {
  return segments.empty() ? 0 : segments.back().first + segments.back().count();
}

int64_t media_count(std::span<const Segment> segments) {
  return segments.empty() ? 0 : segments.back().medium + 1;
}

TokenPlace place_of(std::span<const Segment> segments, int64_t source) {
  const int64_t total = total_tokens(segments);
  if (source >= total) {
    const Segment& segment = segments[source - total];
    return {source - total, segment.rows / 2, segment.cols / 2};
  }
  const auto next =
      std::upper_bound(segments.begin(), segments.end(), source,
                       [](int64_t token, const Segment& segment) { return token < segment.first; });
  const Segment& segment = *std::prev(next);
  const int64_t place = source - segment.first;
  return {std::prev(next) - segments.begin(), place / segment.cols, place % segment.cols};
}

std::vector<TokenPlace> View::places() const {
  std::vector<TokenPlace> out;
  for (const int64_t source : living) out.push_back(place_of(segments, source));
  return out;
}

std::optional<int64_t> Budget::of(int64_t total) const {
  if (!counts.empty()) {
    int64_t sum = 0;
    for (const int64_t each : counts) {
      check(each >= 0, "budget: count ", each, " is negative");
      sum += std::min(each, total);
    }
    return std::min(sum, total);
  }
  check(!count || *count >= 0, "budget: count ", count.value_or(0), " is negative");
  if (count) return std::min(*count, total);
  if (!keep) return std::nullopt;
  check(*keep > 0 && *keep <= 1, "budget: keep ", *keep, " is not a fraction in (0, 1]");
  return std::max<int64_t>(1, std::llround(*keep * static_cast<double>(total)));
}

std::optional<std::vector<int64_t>> Budget::of(std::span<const Segment> segments) const {
  check(counts.empty() || std::ssize(counts) == media_count(segments), "budget: ", counts.size(),
        " counts for ", media_count(segments), " images");
  const auto all = of(total_tokens(segments));
  if (!all) return std::nullopt;
  // Each run of segments shares what is for all of them; rounding leaves nothing over.
  std::vector<int64_t> shares;
  const auto share = [&](std::span<const Segment> run, int64_t given_all) {
    int64_t total = 0, seen = 0, given = 0;
    for (const Segment& segment : run) total += segment.count();
    for (const Segment& segment : run) {
      seen += segment.count();
      const int64_t up_to_here = given_all * seen / std::max<int64_t>(total, 1);
      shares.push_back(up_to_here - given);
      given = up_to_here;
    }
  };
  if (counts.empty()) {
    share(segments, *all);
    return shares;
  }
  for (size_t first = 0, end = 0; first < segments.size(); first = end) {
    while (end < segments.size() && segments[end].medium == segments[first].medium) ++end;
    share(segments.subspan(first, end - first), counts[segments[first].medium]);
  }
  return shares;
}

}  // namespace glimpse
