#include "glimpse/image/clip_image.h"

#include <algorithm>

#include "glimpse/image/decode.h"
#include "glimpse/image/preprocessor.h"
#include "glimpse/image/resize.h"

namespace glimpse {
namespace {

using nlohmann::json;

/// A size that is a number, {"shortest_edge": n} or {"height": n, "width": n}.
void read_size(const json& config, const char* key, int& value) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_object()) return read_setting(config, key, value);
  int width = value;
  read_setting(*found, "shortest_edge", value);
  if (found->contains("height") || found->contains("width")) {
    read_setting(*found, "height", value);
    read_setting(*found, "width", width);
    check(value == width, key, " of ", value, " x ", width, " is not supported, only squares");
  }
}

void check_options(const ClipImageOptions& options) {
  check(options.crop_size >= 1 && options.crop_size <= options.shortest_edge && options.shortest_edge <= 8192,
        "expected 1 <= crop_size <= size <= 8192, got ", options.crop_size, " and ", options.shortest_edge);
  check_normalisation(options.mean, options.std);
}

/// Resized size whose shorter side is `shortest`; the longer one is cut to whole pixels.
Size resized_size(int width, int height, int shortest) {
  const int shorter = std::min(width, height), longer = std::max(width, height);
  const int scaled = static_cast<int>(static_cast<int64_t>(shortest) * longer / shorter);
  return width <= height ? Size{scaled, shortest} : Size{shortest, scaled};
}

}  // namespace

ClipImageOptions ClipImageOptions::from_json(const json& config) {
  check_pipeline(config);
  ClipImageOptions options;
  read_size(config, "size", options.shortest_edge);
  read_size(config, "crop_size", options.crop_size);
  read_setting(config, "image_mean", options.mean);
  read_setting(config, "image_std", options.std);
  read_setting(config, "do_pad", options.pad);
  bool crop = true;
  read_setting(config, "do_center_crop", crop);
  check(crop, "do_center_crop false is not supported");
  check_options(options);
  return options;
}

Image framed(const Image& image, int left, int top, int width, int height, std::array<uint8_t, 3> colour) {
  Image out{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (size_t i = 0; i < out.rgb.size(); ++i) out.rgb[i] = colour[i % 3];
  const int first = std::max(left, 0), count = std::min(left + width, image.width) - first;
  for (int y = std::max(top, 0); y < std::min(top + height, image.height); ++y)
    std::copy_n(&image.rgb[(static_cast<size_t>(y) * image.width + first) * 3], size_t{3} * count,
                &out.rgb[(static_cast<size_t>(y - top) * width + first - left) * 3]);
  return out;
}

at::Tensor normalised(const Image& image, const ClipImageOptions& options) {
  const auto table = normalisation_table(options.mean, options.std);
  at::Tensor pixels = at::empty({3, image.height, image.width}, at::kFloat);
  float* to = pixels.data_ptr<float>();
  for (int c = 0; c < 3; ++c)
    for (size_t i = c; i < image.rgb.size(); i += 3) *to++ = table[c][image.rgb[i]];
  return pixels;
}

Image clip_resize(const Image& image, const ClipImageOptions& options) {
  check_options(options);
  const int64_t longer = std::max(image.width, image.height), shorter = std::min(image.width, image.height);
  check(shorter > 0 && longer <= 200 * shorter, "an image of ", image.width, " x ", image.height,
        " pixels is too long: its aspect ratio must be at most 200");
  check(!options.pad || longer * longer <= DecodeOptions().max_pixels, "an image of ", image.width, " x ",
        image.height, " pixels is too large to be padded to a square");
  const auto centred = [](const Image& from, int width, int height, std::array<uint8_t, 3> colour) {
    // Rounded towards the top left, for cropping as for padding.
    const int left = from.width >= width ? (from.width - width) / 2 : -((width - from.width) / 2);
    const int top = from.height >= height ? (from.height - height) / 2 : -((height - from.height) / 2);
    return framed(from, left, top, width, height, colour);
  };
  std::array<uint8_t, 3> colour{};
  for (int c = 0; c < 3; ++c)
    colour[c] = static_cast<uint8_t>(std::clamp(static_cast<double>(options.mean[c]) * 255, 0.0, 255.0));
  const int side = static_cast<int>(longer);
  const Image whole = options.pad && longer != shorter ? centred(image, side, side, colour) : image;
  const Size size = resized_size(whole.width, whole.height, options.shortest_edge);
  return centred(resize(whole, size.width, size.height), options.crop_size, options.crop_size, {});
}

Patches cut_patches(const at::Tensor& pixels, int64_t patch) {
  const int64_t rows = pixels.size(1) / patch, cols = pixels.size(2) / patch;
  invariant(rows * patch == pixels.size(1) && cols * patch == pixels.size(2), "cut_patches: ragged grid");
  const at::Tensor grid = pixels.reshape({3, rows, patch, cols, patch}).permute({1, 3, 0, 2, 4});
  return {grid.reshape({rows * cols, 3 * patch * patch}),
          {1, static_cast<int>(rows), static_cast<int>(cols)}};
}

Patches clip_patches(const Image& image, const ClipImageOptions& options, int64_t patch) {
  Patches out = cut_patches(normalised(clip_resize(image, options), options), patch);

  // The crop in the resized picture, and the resized picture in the given one.
  const int longer = std::max(image.width, image.height);
  const int width = options.pad ? longer : image.width, height = options.pad ? longer : image.height;
  const Size size = resized_size(width, height, options.shortest_edge);
  const auto covered = [&](int whole, int own, int scaled) {
    const int start = (scaled - options.crop_size) / 2, offset = (whole - own) / 2;
    const double unit = static_cast<double>(whole) / scaled;
    return std::pair{(start * unit - offset) / own, ((start + options.crop_size) * unit - offset) / own};
  };
  const auto [x1, x2] = covered(width, image.width, size.width);
  const auto [y1, y2] = covered(height, image.height, size.height);
  out.area = {x1, y1, x2, y2};
  return out;
}

}  // namespace glimpse
