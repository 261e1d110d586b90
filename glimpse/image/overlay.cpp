#include "glimpse/image/overlay.h"

#include <png.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"

namespace glimpse {
namespace {

/// The cell of `cells` equal ones between `from` and `to` (in parts of `length` pixels) that holds each
/// pixel; -1 outside.
std::vector<int> cell_of_pixel(int length, int cells, double from, double to) {
  std::vector<int> cell(length);
  for (int i = 0; i < length; ++i) {
    const double place = std::floor((i - from * length) * cells / ((to - from) * length));
    cell[i] = place >= 0 && place < cells ? static_cast<int>(place) : -1;
  }
  return cell;
}

/// [height * width] of 0/1, row-major: the pixels in a kept cell of any of the grids.
std::vector<uint8_t> kept_pixels(std::span<const KeptGrid> grids, int width, int height) {
  std::vector<uint8_t> pixels(static_cast<size_t>(width) * height);
  for (const auto& [rows, cols, keep, area] : grids) {
    check(rows > 0 && cols > 0, "a token grid needs rows and columns, got ", rows, " x ", cols);
    std::vector<uint8_t> mask(static_cast<size_t>(rows * cols));
    for (const int64_t token : keep) {
      check(token >= 0 && token < std::ssize(mask), "kept token ", token, " lies outside the grid of ", rows,
            " x ", cols);
      mask[token] = 1;
    }
    const std::vector<int> row_of = cell_of_pixel(height, static_cast<int>(rows), area.y1, area.y2);
    const std::vector<int> column_of = cell_of_pixel(width, static_cast<int>(cols), area.x1, area.x2);
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width && row_of[y] >= 0; ++x)
        if (column_of[x] >= 0)
          pixels[static_cast<size_t>(y) * width + x] |= mask[row_of[y] * cols + column_of[x]];
  }
  return pixels;
}

void write_whole_file(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  AtomicFile file(path);
  file.stream().write(reinterpret_cast<const char*>(bytes.data()),
                      static_cast<std::streamsize>(bytes.size()));
  file.commit();
}

/// A PNG of 8-bit rows without padding; `format` is PNG_FORMAT_GRAY or PNG_FORMAT_RGB. Errors start with
/// `name`.
std::vector<uint8_t> encode(const std::vector<uint8_t>& pixels, int width, int height, uint32_t format,
                            const std::string& name) {
  const size_t expected =
      static_cast<size_t>(std::max(width, 0)) * std::max(height, 0) * PNG_IMAGE_PIXEL_SIZE(format);
  check(expected > 0 && pixels.size() == expected, name, ": cannot write a picture of ", width, " x ", height,
        " with ", pixels.size(), " bytes");
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = format;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::vector<uint8_t> bytes(size);
  const bool written = png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels.data(), 0, nullptr);
  check(written, name, ": PNG encoding failed: ", image.message);
  bytes.resize(size);
  return bytes;
}

}  // namespace

Image draw_kept(const Image& image, std::span<const KeptGrid> grids) {
  const std::vector<uint8_t> mask = kept_pixels(grids, image.width, image.height);
  const auto kept = [&](int y, int x) { return mask[static_cast<size_t>(y) * image.width + x] != 0; };
  const int line = std::max(1, std::min(image.width, image.height) / 400);

  Image out = image;
  uint8_t* pixel = out.rgb.data();
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < image.width; ++x, pixel += 3) {
      if (!kept(y, x)) {
        for (int c = 0; c < 3; ++c) pixel[c] = static_cast<uint8_t>(pixel[c] * 3 / 10);
        continue;
      }
      const int up = std::max(y - line, 0), down = std::min(y + line, image.height - 1);
      const int left = std::max(x - line, 0), right = std::min(x + line, image.width - 1);
      const bool border = !kept(up, x) || !kept(down, x) || !kept(y, left) || !kept(y, right);
      const int strength = border ? 10 : 2;  // tenths of pure green
      for (int c = 0; c < 3; ++c)
        pixel[c] = static_cast<uint8_t>((pixel[c] * (10 - strength) + (c == 1 ? 255 : 0) * strength) / 10);
    }
  return out;
}

Image draw_kept(const Image& image, int rows, int cols, const std::vector<int64_t>& keep, const Box& area) {
  const KeptGrid grid{rows, cols, keep, area};
  return draw_kept(image, std::span(&grid, 1));
}

Image kept_mask(std::span<const KeptGrid> grids, int width, int height) {
  Image out{width, height, {}};
  for (const uint8_t kept : kept_pixels(grids, width, height))
    out.rgb.insert(out.rgb.end(), 3, kept != 0 ? 255 : 0);
  return out;
}

std::vector<uint8_t> encode_png(const Image& image) {
  return encode(image.rgb, image.width, image.height, PNG_FORMAT_RGB, "PNG");
}

void save_png(const Image& image, const std::filesystem::path& path) {
  write_whole_file(path, encode(image.rgb, image.width, image.height, PNG_FORMAT_RGB, path.string()));
}

void save_mask_png(std::span<const KeptGrid> grids, int width, int height,
                   const std::filesystem::path& path) {
  std::vector<uint8_t> grey = kept_pixels(grids, std::max(width, 0), std::max(height, 0));
  for (uint8_t& value : grey) value = value != 0 ? 255 : 0;
  write_whole_file(path, encode(grey, width, height, PNG_FORMAT_GRAY, path.string()));
}

void save_mask_png(const std::vector<uint8_t>& mask, int rows, int cols, int width, int height,
                   const std::filesystem::path& path, const Box& area) {
  check(rows > 0 && cols > 0 && std::ssize(mask) == static_cast<int64_t>(rows) * cols, path.string(),
        ": a mask of ", mask.size(), " tokens does not fill a grid of ", rows, " x ", cols);
  KeptGrid grid{rows, cols, {}, area};
  for (int64_t token = 0; token < std::ssize(mask); ++token)
    if (mask[token] != 0) grid.keep.push_back(token);
  save_mask_png(std::span(&grid, 1), width, height, path);
}

}  // namespace glimpse
