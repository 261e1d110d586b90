#pragma once

#include "device.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/models/vlm.h"
#include "golden_case.h"

namespace glimpse::test {

/// A number of a CLIP vision encoder's config.json.
inline int64_t clip_vision(const std::filesystem::path& tower, const std::string& key) {
  const nlohmann::json config = read_json(tower / "config.json");
  return config.value("vision_config", config).at(key);
}

/// The images of a golden case as the encoder's input, and the arrays stored with them.
struct Inputs {
  std::vector<Patches> patches;
  std::map<std::string, at::Tensor> arrays;

  Inputs(const GoldenCase& golden, const std::string& name)
      : arrays(load_safetensors(golden.folder / (name + ".safetensors")).tensors) {
    const at::Tensor& pixels = arrays.at("pixel_values");
    if (!arrays.contains("image_grid_thw")) {  // LLaVA: one picture
      patches.push_back(cut_patches(pixels, clip_vision(golden.folder / "vision_tower", "patch_size")));
      return;
    }
    const at::Tensor grids = arrays.at("image_grid_thw").to(at::kLong);
    int64_t first = 0;
    for (int64_t i = 0; i < grids.size(0); ++i) {
      const Grid grid{static_cast<int>(grids[i][0].item<int64_t>()),
                      static_cast<int>(grids[i][1].item<int64_t>()),
                      static_cast<int>(grids[i][2].item<int64_t>())};
      const int64_t count = int64_t{grid.t} * grid.h * grid.w;
      patches.push_back({pixels.narrow(0, first, count), grid});
      first += count;
    }
  }
};

/// The case's base model, with the config that its pruning modules replace fields of; `merged`: with the
/// case's adapter in it.
inline std::unique_ptr<Vlm> load_model(const GoldenCase& golden, at::ScalarType dtype,
                                       const std::filesystem::path& clip = {}, bool merged = false) {
  LoadOptions options;
  if (merged) options.adapters = {golden.folder / golden.info["adapter"].get<std::string>()};
  options.clip = clip;
  options.dtype = dtype;
  options.device = test_device();
  options.config_overrides =
      read_json(golden.folder / golden.info["new_modules"].get<std::string>() / "config.json");
  if (std::filesystem::exists(golden.folder / "vision_tower"))
    options.config_overrides["mm_vision_tower"] = golden.folder / "vision_tower";
  return load_vlm(golden.folder / golden.info["model"].get<std::string>(), options);
}

}  // namespace glimpse::test
