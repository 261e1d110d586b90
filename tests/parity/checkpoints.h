#pragma once

#include <cstdlib>

#include "glimpse/image/clip_image.h"
#include "glimpse/models/vlm.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

namespace glimpse::test {

/// The value of an environment variable that `meaning` explains.
inline std::string required(const char* variable, const char* meaning) {
  const char* value = std::getenv(variable);
  REQUIRE_MESSAGE(value != nullptr, variable << " " << meaning);
  return value;
}

/// The random checkpoints and their cases.
inline std::filesystem::path checkpoints() {
  return required("GLIMPSE_PARITY_DIR", "must name the folder that make_checkpoints.py and its like wrote");
}

/// An image or a video of one of Qwen's models, and what its encoder is to make of it.
struct Visual {
  Patches patches;
  at::Tensor embeds;
};

/// Those that a case has of one kind, image or video.
inline std::vector<Visual> visuals_of(const GoldenCase& parity, const std::string& kind) {
  std::vector<Visual> out;
  if (!parity.has(kind + "_grid_thw")) return out;
  const at::Tensor& pixels = parity[kind == "image" ? "pixel_values" : "pixel_values_videos"];
  int64_t first = 0;
  for (const at::Tensor& size : parity[kind + "_grid_thw"].to(at::kLong).unbind()) {
    const int64_t count = size.prod().item<int64_t>();
    Visual& each = out.emplace_back();
    each.patches = {pixels.narrow(0, first, count),
                    {size[0].item<int>(), size[1].item<int>(), size[2].item<int>()}};
    each.embeds = parity[kind + "_embeds"].narrow(0, first / 4, count / 4);
    if (kind == "video" && parity.has("second_per_grid_ts"))
      each.patches.clip.emplace(parity["second_per_grid_ts"][std::ssize(out) - 1].item<double>());
    first += count;
  }
  return out;
}

/// All of a case, as its ids (make_checkpoints.py's) have them.
inline std::vector<Visual> in_prompt_order(const GoldenCase& parity) {
  struct Kind {
    int64_t token;
    std::vector<Visual> visuals;
    size_t next = 0;
    int64_t left = 0;  // tokens of the one before
  };
  Kind kinds[] = {{318, visuals_of(parity, "image")}, {319, visuals_of(parity, "video")}};
  std::vector<Visual> out;
  for (const int64_t id : parity.integers("input_ids"))
    for (Kind& kind : kinds) {
      if (id != kind.token) continue;
      if (kind.left == 0) {
        out.push_back(kind.visuals.at(kind.next++));
        kind.left = out.back().embeds.size(0);
      }
      --kind.left;
    }
  return out;
}

/// A case's images as the encoder's input.
inline std::vector<Patches> patches_of(const GoldenCase& parity) {
  std::vector<Patches> patches;
  if (!parity.has("pixel_values") && !parity.has("pixel_values_videos")) return patches;
  if (parity.has("image_sizes")) {  // pictures in tiles
    const std::vector<int64_t> sizes = parity.integers("image_sizes"), counts = parity.integers("tiles");
    int64_t first = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      Patches picture;
      std::vector<at::Tensor> tiles;
      for (int64_t tile = 0; tile < counts[i]; ++tile) {
        picture = cut_patches(parity["pixel_values"][first++], 14);
        tiles.push_back(picture.pixel_values);
      }
      picture.pixel_values = at::cat(tiles);
      picture.grid.t = static_cast<int>(counts[i]);
      picture.height = static_cast<int>(sizes[2 * i]);
      picture.width = static_cast<int>(sizes[2 * i + 1]);
      patches.push_back(picture);
    }
    return patches;
  }
  if (!parity.has("image_grid_thw") && !parity.has("video_grid_thw")) {  // whole pictures
    for (const at::Tensor& picture : parity["pixel_values"].unbind())
      patches.push_back(cut_patches(picture, 14));
    return patches;
  }
  for (const Visual& each : in_prompt_order(parity)) patches.push_back(each.patches);
  return patches;
}

/// What the encoder is to make of them, [N, D] in the order of the prompt.
inline at::Tensor embeds_of(const GoldenCase& parity) {
  if (!parity.has("video_embeds")) return parity["image_embeds"];
  std::vector<at::Tensor> embeds;
  for (const Visual& each : in_prompt_order(parity)) embeds.push_back(each.embeds);
  return at::cat(embeds);
}

}  // namespace glimpse::test
