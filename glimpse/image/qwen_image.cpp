#include "glimpse/image/qwen_image.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/image/preprocessor.h"
#include "glimpse/image/resize.h"

namespace glimpse {
namespace {

using nlohmann::json;

void check_options(const QwenImageOptions& options) {
  for (const auto& [value, name] : {std::pair{options.patch_size, "patch_size"},
                                    {options.temporal_patch_size, "temporal_patch_size"},
                                    {options.merge_size, "merge_size"}})
    check(value >= 1 && value <= 1024, "image option ", name, " must lie in 1..1024, got ", value);
  check(options.min_pixels >= 1 && options.min_pixels <= options.max_pixels,
        "image options need 1 <= min_pixels <= max_pixels, got ", options.min_pixels, " and ",
        options.max_pixels);
  check(options.max_pixels <= (int64_t{1} << 30), "image option max_pixels must be at most 2^30, got ",
        options.max_pixels);
  check_normalisation(options.mean, options.std);
}

}  // namespace

QwenImageOptions QwenImageOptions::qwen3() {
  QwenImageOptions options;
  options.patch_size = 16;
  options.min_pixels = 256 * 256;
  options.max_pixels = 4096 * 4096;
  options.mean = options.std = {0.5f, 0.5f, 0.5f};
  options.thin_grows = true;
  return options;
}

QwenImageOptions QwenImageOptions::from_json(const json& config) {
  return from_json(config, {});
}

QwenImageOptions QwenImageOptions::from_json(const json& config, const QwenImageOptions& defaults) {
  check_pipeline(config);
  QwenImageOptions options = defaults;
  if (const auto size = config.find("size"); size != config.end() && size->is_object()) {
    read_setting(*size, "shortest_edge", options.min_pixels);
    read_setting(*size, "longest_edge", options.max_pixels);
    read_setting(*size, "min_pixels", options.min_pixels);
    read_setting(*size, "max_pixels", options.max_pixels);
  }
  read_setting(config, "min_pixels", options.min_pixels);
  read_setting(config, "max_pixels", options.max_pixels);
  read_setting(config, "patch_size", options.patch_size);
  read_setting(config, "temporal_patch_size", options.temporal_patch_size);
  read_setting(config, "merge_size", options.merge_size);
  read_setting(config, "image_mean", options.mean);
  read_setting(config, "image_std", options.std);
  check_options(options);
  return options;
}

Image qwen_resize(const Image& image, const QwenImageOptions& options) {
  check_options(options);
  const int factor = options.patch_size * options.merge_size;
  if (!options.reference) {
    const Size size = smart_resize(image.height, image.width, factor, options.min_pixels, options.max_pixels,
                                   options.thin_grows);
    // A very long picture keeps at least one row of tokens.
    return resize(image, std::max(size.width, factor), std::max(size.height, factor));
  }
  const QwenImageOptions loader;
  const Size first = smart_resize(image.height, image.width, factor, loader.min_pixels, loader.max_pixels);
  const Size second =
      smart_resize_strict(first.height, first.width, factor, options.min_pixels, options.max_pixels);
  check(second.height > 0 && second.width > 0, "an image of ", image.width, " x ", image.height,
        " pixels is too long for max_pixels ", options.max_pixels, " in reference preprocessing");
  return resize(resize(image, first.width, first.height), second.width, second.height);
}

Patches qwen_patches(const Image& image, const QwenImageOptions& options) {
  const Image resized = qwen_resize(image, options);
  const auto table = normalisation_table(options.mean, options.std);
  const int patch = options.patch_size;
  const int merge = options.merge_size;
  const Grid grid{1, resized.height / patch, resized.width / patch};
  const int frames = options.temporal_patch_size;
  const int64_t frame_size = static_cast<int64_t>(patch) * patch;
  const int64_t row_size = 3 * frames * frame_size;
  Patches out{at::empty({static_cast<int64_t>(grid.h) * grid.w, row_size}, at::kFloat), grid};
  float* const values = out.pixel_values.data_ptr<float>();

  const auto fill_patch = [&](int row, int column, float* to) {
    for (int c = 0; c < 3; ++c, to += frames * frame_size) {
      float* pixel = to;
      for (int y = 0; y < patch; ++y) {
        const uint8_t* from =
            &resized.rgb[((static_cast<int64_t>(row) * patch + y) * resized.width + column * patch) * 3 + c];
        for (int x = 0; x < patch; ++x) *pixel++ = table[c][from[3 * x]];
      }
      for (int t = 1; t < frames; ++t) std::copy_n(to, frame_size, to + t * frame_size);
    }
  };
  at::parallel_for(0, grid.h / merge, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit_row = begin; unit_row < end; ++unit_row) {
      float* to = values + unit_row * merge * grid.w * row_size;
      for (int unit_column = 0; unit_column < grid.w / merge; ++unit_column)
        for (int i = 0; i < merge; ++i)
          for (int j = 0; j < merge; ++j, to += row_size)
            fill_patch(static_cast<int>(unit_row) * merge + i, unit_column * merge + j, to);
    }
  });
  return out;
}

}  // namespace glimpse
