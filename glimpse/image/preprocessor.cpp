#include "glimpse/image/preprocessor.h"

#include <cmath>

namespace glimpse {

void check_pipeline(const nlohmann::json& config) {
  check(config.is_object(), "the image processor's settings must be a JSON object");
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) {
    bool on = true;
    read_setting(config, key, on);
    check(on, key, " false is not supported");
  }
  int resample = 3;
  read_setting(config, "resample", resample);
  check(resample == 3, "resample ", resample, " is not supported, only 3 (bicubic)");
  double rescale = 1 / 255.0;
  read_setting(config, "rescale_factor", rescale);
  check(std::abs(rescale * 255 - 1) < 1e-9, "rescale_factor must be 1/255, got ", rescale);
}

void check_normalisation(const std::array<float, 3>& mean, const std::array<float, 3>& std) {
  for (const float deviation : std)
    check(std::isfinite(deviation) && deviation > 0, "image_std must be positive, got ", deviation);
  for (const float value : mean) check(std::isfinite(value), "image_mean must be finite, got ", value);
}

LevelTable normalisation_table(const std::array<float, 3>& mean, const std::array<float, 3>& std) {
  LevelTable table;
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) table[c][v] = (static_cast<float>(v * (1 / 255.0)) - mean[c]) / std[c];
  return table;
}

}  // namespace glimpse
