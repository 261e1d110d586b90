#pragma once

#include <array>
#include <numeric>
#include <vector>

#include "glimpse/prune/pruner.h"

namespace glimpse::test {

/// A view of images with the given rows and columns, all tokens living; owns what the view refers to.
struct Views {
  std::vector<Segment> segments;
  std::vector<std::vector<Box>> boxes;
  View view;

  explicit Views(const std::vector<std::array<int64_t, 2>>& grids) {
    int64_t first = 0;
    for (const auto& [rows, cols] : grids) {
      segments.push_back({rows, cols, first, whole_image, std::ssize(segments)});
      first += rows * cols;
    }
    view.segments = segments;
    std::vector<int64_t> all(first);
    std::iota(all.begin(), all.end(), int64_t{0});
    set_living(all);
  }
  Views(const Views&) = delete;
  void set_living(const std::vector<int64_t>& sources) {
    view.living = sources;
    view.index = at::tensor(sources, at::kLong);
  }
  void set_boxes(std::vector<std::vector<Box>> given) {
    boxes = std::move(given);
    view.boxes = boxes;
  }
};

}  // namespace glimpse::test
