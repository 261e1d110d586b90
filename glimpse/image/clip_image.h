#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>

#include "glimpse/image/image.h"
#include "glimpse/image/patches.h"

namespace glimpse {

/// Settings of the CLIP image processor.
struct ClipImageOptions {
  int shortest_edge = 336;
  int crop_size = 336;
  std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};
  std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};
  /// LLaVA's image_aspect_ratio "pad": the picture goes into the middle of a square of the mean colour first,
  /// so that nothing is cropped.
  bool pad = false;

  /// From a preprocessor_config.json; sizes are numbers or objects, as the versions of it have them. Throws
  /// Error naming the field that is wrong or not supported.
  static ClipImageOptions from_json(const nlohmann::json& preprocessor_config);
};

/// The picture as it is normalised: padded, shortest edge resized (bicubic), centre cropped. Throws Error for
/// an aspect ratio above 200 and for a square too large to decode.
Image clip_resize(const Image& image, const ClipImageOptions& options);

/// The part of `image` from (left, top), which may lie outside of it, in a picture of `width` x `height`
/// filled with `colour`.
Image framed(const Image& image, int left, int top, int width, int height, std::array<uint8_t, 3> colour);

/// The picture's values [3, H, W], normalised.
at::Tensor normalised(const Image& image, const ClipImageOptions& options);

/// Cuts pixels [3, H, W] into a row-major grid of patches [h*w, 3*patch*patch]. H and W must be multiples of
/// `patch`.
Patches cut_patches(const at::Tensor& pixels, int64_t patch);

/// Resizes, normalises and cuts one picture. Errors as for clip_resize.
Patches clip_patches(const Image& image, const ClipImageOptions& options, int64_t patch);

}  // namespace glimpse
