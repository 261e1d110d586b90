#pragma once

#include <ATen/ATen.h>

#include <array>
#include <nlohmann/json_fwd.hpp>

#include "glimpse/image/decode.h"
#include "glimpse/image/image.h"
#include "glimpse/image/patches.h"
#include "glimpse/image/video.h"

namespace glimpse {

/// Settings of the image processor of Qwen's vision-language models, by default Qwen2-VL's.
struct QwenImageOptions {
  int64_t min_pixels = 56 * 56;
  int64_t max_pixels = 28 * 28 * 16384;
  int patch_size = 14;
  int temporal_patch_size = 2;
  int merge_size = 2;
  std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};
  std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};
  bool thin_grows = false;  ///< see smart_resize
  /// The published evaluation's preprocessing: a first resize with the default bounds, then the image
  /// processor with these. It leaves EXIF orientation alone (DecodeOptions).
  bool reference = false;

  /// From a preprocessor_config.json; bounds may stand at the top or in `size` (as shortest_edge/longest_edge
  /// or min_pixels/max_pixels); what it leaves out is as in `defaults`. Throws Error naming the field that is
  /// wrong or not supported.
  static QwenImageOptions from_json(const nlohmann::json& preprocessor_config,
                                    const QwenImageOptions& defaults);
  static QwenImageOptions from_json(const nlohmann::json& preprocessor_config);
  /// Of Qwen3-VL: larger patches, other bounds and values.
  static QwenImageOptions qwen3();
};

/// The picture as it goes into patches: resized to whole merge units within the pixel bounds. Throws Error
/// for an aspect ratio above 200 and, in reference mode, for what the reference refuses too (a side shrinking
/// to nothing).
Image qwen_resize(const Image& image, const QwenImageOptions& options);

/// Resizes, normalises and cuts one picture into patches; the still image stands for every frame of its
/// temporal patch. Errors as for qwen_resize.
Patches qwen_patches(const Image& image, const QwenImageOptions& options);

/// The same of what a video's own options choose of it, frame by frame; a grid has a frame for every
/// `temporal_patch_size` of them, the last one standing for those that are missing. Errors as of sample_video
/// and VideoSource::read.
Patches qwen_patches(const Video& video, const QwenImageOptions& options);

}  // namespace glimpse
