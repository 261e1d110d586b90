#include "glimpse/image/qwen_image.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/image/preprocessor.h"
#include "glimpse/image/resize.h"
#include "glimpse/image/video_rate.h"

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

// Pictures of one size as patches of numbers, or of bytes; see Patches::pixel_values.
template <class Value>
class Cutter {
 public:
  Cutter(const QwenImageOptions& options, Size size, int64_t frames)
      : table_(std::make_shared<LevelTable>(normalisation_table(options.mean, options.std))),
        patch_(options.patch_size),
        merge_(options.merge_size),
        per_slice_(options.temporal_patch_size) {
    out.grid = {static_cast<int>(frames / per_slice_), size.height / options.patch_size,
                size.width / options.patch_size};
    out.pixel_values = at::empty({frames / per_slice_ * out.grid.h * out.grid.w, row_size()},
                                 kBytes ? at::kByte : at::kFloat);
    if (kBytes) out.levels = table_;
  }

  // As `count` frames from `frame` on, of one slice.
  void add(const Image& picture, int64_t frame, int64_t count) {
    const Grid& grid = out.grid;
    Value* const slice = out.pixel_values.template data_ptr<Value>() +
                         frame / per_slice_ * grid.h * grid.w * row_size() +
                         frame % per_slice_ * patch_ * patch_;
    at::parallel_for(0, grid.h / merge_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit_row = begin; unit_row < end; ++unit_row) {
        Value* to = slice + unit_row * merge_ * grid.w * row_size();
        for (int64_t unit_column = 0; unit_column < grid.w / merge_; ++unit_column)
          for (int64_t i = 0; i < merge_; ++i)
            for (int64_t j = 0; j < merge_; ++j, to += row_size())
              fill(picture, unit_row * merge_ + i, unit_column * merge_ + j, count, to);
      }
    });
  }

  Patches out;

 private:
  static constexpr bool kBytes = std::is_same_v<Value, uint8_t>;
  Value value(int channel, uint8_t byte) const {
    if constexpr (kBytes) return byte;
    return static_cast<Value>((*table_)[channel][byte]);
  }
  int64_t row_size() const { return 3 * per_slice_ * patch_ * patch_; }
  void fill(const Image& picture, int64_t row, int64_t column, int64_t count, Value* to) const {
    const int64_t size = patch_ * patch_;
    for (int c = 0; c < 3; ++c, to += per_slice_ * size) {
      Value* pixel = to;
      for (int64_t y = 0; y < patch_; ++y) {
        const uint8_t* from = &picture.rgb[((row * patch_ + y) * picture.width + column * patch_) * 3 + c];
        for (int64_t x = 0; x < patch_; ++x) *pixel++ = value(c, from[3 * x]);
      }
      for (int64_t i = 1; i < count; ++i) std::copy_n(to, size, to + i * size);
    }
  }

  const std::shared_ptr<const LevelTable> table_;
  const int64_t patch_, merge_, per_slice_;
};

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
  Cutter<float> cutter(options, {resized.height, resized.width}, options.temporal_patch_size);
  cutter.add(resized, 0, options.temporal_patch_size);
  return std::move(cutter.out);
}

Patches qwen_patches(const Video& video, const QwenImageOptions& options) {
  check_options(options);
  const VideoInfo& info = video.source->info();
  VideoSample sample = sample_video(info, video.options, options.patch_size * options.merge_size);
  const int per_slice = options.temporal_patch_size;
  while (sample.indices.size() % per_slice != 0) sample.indices.push_back(sample.indices.back());
  Cutter<uint8_t> cutter(options, sample.size, std::ssize(sample.indices));
  video.source->read(sample.indices, [&](size_t frame, const Image& image) {
    cutter.add(resize_frame(image, sample.size), static_cast<int64_t>(frame), 1);
  });
  const double rate = detail::video_rate(info, video.options);
  const auto time_of = [&](int64_t index) { return static_cast<double>(index) / rate; };
  Clip& clip = cutter.out.clip.emplace();
  clip.seconds_per_grid = per_slice / sample.fps;
  for (size_t first = 0; first < sample.indices.size(); first += per_slice) {
    const auto* const index = &sample.indices[first];
    clip.seconds.push_back((time_of(index[0]) + time_of(index[per_slice - 1])) / 2);
  }
  return std::move(cutter.out);
}

}  // namespace glimpse
