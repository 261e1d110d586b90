#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/image/patches.h"

namespace glimpse {

/// What the image processors of all families have in common. Errors name the setting; who knows where it is
/// from adds the file.

/// Reads config[key] into `value`, which stays as it is when the key is absent or null. Error naming the key.
template <class T>
void read_setting(const nlohmann::json& config, const char* key, T& value) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return;
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
    check(found->is_number_integer() && std::in_range<T>(found->template get<int64_t>()), key,
          " must be a whole number, got ", found->dump());
  try {
    found->get_to(value);
  } catch (const nlohmann::json::exception&) {
    fail(key, " has an unexpected value: ", found->dump());
  }
}

/// Error unless a preprocessor_config.json asks for bicubic resizing, rescaling by 1/255 and normalisation.
void check_pipeline(const nlohmann::json& config);

/// Error unless the means are finite and the deviations positive.
void check_normalisation(const std::array<float, 3>& mean, const std::array<float, 3>& std);

/// Normalised value of every byte of every channel, rounded as the image processor rounds it: the rescaling
/// in double, the rest in float.
LevelTable normalisation_table(const std::array<float, 3>& mean, const std::array<float, 3>& std);

}  // namespace glimpse
