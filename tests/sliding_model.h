#pragma once

#include "builtin.h"

namespace glimpse::test {

/// The built-in model with windows of 12 rows in all layers but the first.
class SlidingModel : public BrokenModel {
 public:
  SlidingModel() {
    edit_json("config.json", [](nlohmann::json& c) {
      c["use_sliding_window"] = true;
      c["sliding_window"] = 12;
      c["max_window_layers"] = 1;
    });
  }
};

}  // namespace glimpse::test
