#pragma once

#include "device.h"
#include "glimpse/image/anyres.h"
#include "glimpse/image/clip_image.h"
#include "glimpse/image/decode.h"
#include "glimpse/models/llava_settings.h"
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

  Inputs() = default;  // of a text
  Inputs(const GoldenCase& golden, const std::string& name)
      : arrays(load_safetensors(golden.folder / (name + ".safetensors")).tensors) {
    const nlohmann::json info = read_json(golden.folder / (name + ".json"));
    if (info.contains("grids_in_prompt_order")) {
      add_media(info["grids_in_prompt_order"], info["parts"]);
      return;
    }
    if (info.contains("tiles")) {
      add_tiles(golden, name, static_cast<int>(info["tiles"].size()));
      return;
    }
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

 private:
  // Pictures in tiles, from their files; image_embeds are then the features that are no newlines.
  void add_tiles(const GoldenCase& golden, const std::string& name, int images) {
    const std::filesystem::path base = golden.folder / golden.info["model"].get<std::string>();
    const LlavaSettings settings(base, read_json(base / "config.json"));
    const auto tile =
        ClipImageOptions::from_json(read_json(settings.preprocessor_dir / "preprocessor_config.json"));
    for (int i = 0; i < images; ++i)
      patches.push_back(anyres_patches(load_image(golden.folder / (name + "." + std::to_string(i) + ".png")),
                                       {tile, settings.resolutions, settings.rounds},
                                       settings.vision["patch_size"]));
    arrays["image_embeds"] =
        arrays.at("image_features").index_select(0, arrays.at("is_newline").eq(0).nonzero().squeeze(1));
  }

  // Images and videos in the order of the prompt; then image_embeds are those of both.
  void add_media(const nlohmann::json& order, const nlohmann::json& parts) {
    std::map<std::string, int64_t> used;
    std::vector<at::Tensor> embeds;
    for (size_t i = 0; i < order.size(); ++i) {
      const nlohmann::json& each = order[i];
      const std::string kind = each[0];
      const at::Tensor& pixels = arrays.at(kind == "image" ? "pixel_values" : "pixel_values_videos");
      const at::Tensor& own = arrays.at(kind + "_embeds");
      const Grid grid{each[1], each[2], each[3]};
      const int64_t count = int64_t{grid.t} * grid.h * grid.w, unit = pixels.size(0) / own.size(0);
      patches.push_back({pixels.narrow(0, used[kind], count), grid});
      if (kind == "video") patches.back().clip.emplace(parts[i].value("second_per_grid_t", 0.0));
      embeds.push_back(own.narrow(0, used[kind] / unit, count / unit));
      used[kind] += count;
    }
    arrays["image_embeds"] = at::cat(embeds);
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
  if (golden.info.contains("new_modules"))
    options.config_overrides =
        read_json(golden.folder / golden.info["new_modules"].get<std::string>() / "config.json");
  if (std::filesystem::exists(golden.folder / "vision_tower"))
    options.config_overrides["mm_vision_tower"] = golden.folder / "vision_tower";
  return load_vlm(golden.folder / golden.info["model"].get<std::string>(), options);
}

}  // namespace glimpse::test
