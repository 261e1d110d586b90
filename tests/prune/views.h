#pragma once

#include <array>
#include <vector>

#include "glimpse/prune/pruner.h"

namespace glimpse::test {

/// A view of images with the given rows and columns, all tokens living; owns what the view refers to.
struct Views {
  std::vector<ImageSpan> images;
  std::vector<std::vector<Box>> boxes;
  View view;

  explicit Views(const std::vector<std::array<int64_t, 2>>& grids) {
    int64_t first = 0;
    for (const auto& [rows, cols] : grids) {
      images.push_back({rows, cols, first});
      first += rows * cols;
    }
    view.images = images;
    view.living = at::arange(first, at::kLong);
  }
  Views(const Views&) = delete;
  void set_boxes(std::vector<std::vector<Box>> given) {
    boxes = std::move(given);
    view.boxes = boxes;
  }
};

}  // namespace glimpse::test
