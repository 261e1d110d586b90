#include "bench/workload.h"

#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/eval/flops.h"

namespace glimpse::bench {

Grid patch_grid(int64_t visual, const VisionShape& vision, int64_t frames) {
  const int64_t merge = vision.merge;
  if (frames > 0) {
    const int64_t slices = frames / 2;
    check(frames % 2 == 0 && visual % slices == 0, "--frames: ", visual, " visual tokens in ", frames,
          " frames do not make slices of two frames with equally many");
    Grid grid = patch_grid(visual / slices, vision);
    grid.t = static_cast<int>(slices);
    return grid;
  }
  if (const int64_t side = vision.tile; side > 0) {
    check(visual % (side * side) == 0, "--visual: ", visual, " tokens are no tiles of ", side, " x ", side);
    return {static_cast<int>(visual / (side * side)), static_cast<int>(side), static_cast<int>(side)};
  }
  auto rows = static_cast<int64_t>(std::sqrt(static_cast<double>(visual)));
  while (visual % rows != 0) --rows;
  return {1, static_cast<int>(rows * merge), static_cast<int>(visual / rows * merge)};
}

Prompt make_prompt(const nlohmann::json& config, int64_t visual, int64_t text, const Vlm& model,
                   int64_t frames) {
  const VisionShape vision = glimpse::vision_shape(config);
  // What marks an image's place: its token, and those around it if the family has them.
  std::vector<int64_t> image;
  for (const char* key : {"vision_start_token_id", frames > 0 ? "video_token_id" : "image_token_id",
                          "image_token_index", "vision_end_token_id"})
    if (config.contains(key)) image.push_back(config.at(key));
  const Grid grid = patch_grid(visual, vision, frames);
  Patches picture{{}, grid};
  if (frames > 0) picture.clip.emplace(1.0);
  int64_t others = std::ssize(image) - 1;
  if (vision.tile > 0) {  // a square of tiles behind the whole picture, a newline behind each of their rows
    const auto across = static_cast<int>(std::sqrt(grid.t - 1));
    picture.width = picture.height = across * grid.w * static_cast<int>(vision.patch);
    others += across * grid.h;
  }
  check(text > others, "--text: the picture alone needs ", others, " tokens that are not visual");
  at::manual_seed(0);
  const at::Tensor words = at::randint(0, 500, {text - others}, at::kLong);
  std::vector<int64_t> ids(words.const_data_ptr<int64_t>(), words.const_data_ptr<int64_t>() + words.numel());
  ids.insert(ids.begin() + std::min<int64_t>(10, words.numel()), image.begin(), image.end());
  picture.pixel_values = at::randn({int64_t{grid.t} * grid.h * grid.w, vision.patch_values});
  return model.prompt(ids, {picture});
}

// In 4 bits a group of 64 has a multiple of 1 byte, and the head has 8 bits.
double weight_bytes(const DecoderConfig& c, const std::string& weights) {
  const double layers = static_cast<double>(c.layers) * layer_weights(c),
               head = static_cast<double>(c.hidden_size * c.vocab_size);
  return weights == "int8"   ? layers + head
         : weights == "int4" ? layers * (0.5 + 1.0 / 64) + head
                             : 2 * (layers + head);
}

}  // namespace glimpse::bench
