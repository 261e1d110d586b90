#include "glimpse/image/resize.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/image/pixel_bounds.h"

namespace glimpse {
namespace {

// Weights are fixed point: 8 bits of pixel and 2 of headroom for overshoot leave 22 of an int32.
constexpr int weight_bits = 32 - 8 - 2;
constexpr int half = 1 << (weight_bits - 1);

double bilinear(double x) {
  x = std::abs(x);
  return x < 1 ? 1 - x : 0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/// For each output position: the input range that it covers and the weights of that range.
struct Taps {
  int stride = 0;            // weights reserved per output position
  std::vector<int> first;    // [out]
  std::vector<int> count;    // [out]
  std::vector<int> weights;  // [out, stride]
};

Taps make_taps(int in, int out, Filter filter) {
  const auto kernel = filter == Filter::bicubic ? bicubic : bilinear;
  const double scale = static_cast<double>(in) / out;
  const double widening = std::max(scale, 1.0);
  const double support = (filter == Filter::bicubic ? 2.0 : 1.0) * widening;
  const double narrowing = 1.0 / widening;

  Taps taps;
  taps.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps.first.resize(out);
  taps.count.resize(out);
  taps.weights.resize(static_cast<size_t>(out) * taps.stride);
  std::vector<double> exact(taps.stride);
  for (int i = 0; i < out; ++i) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), in) - first;
    double sum = 0;
    for (int k = 0; k < count; ++k) {
      exact[k] = kernel((k + first - center + 0.5) * narrowing);
      sum += exact[k];
    }
    int* weights = &taps.weights[static_cast<size_t>(i) * taps.stride];
    for (int k = 0; k < count; ++k) {
      const double weight = (sum != 0 ? exact[k] / sum : exact[k]) * (1 << weight_bits);
      weights[k] = static_cast<int>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    taps.first[i] = first;
    taps.count[i] = count;
  }
  return taps;
}

uint8_t to_byte(int sum) {
  return static_cast<uint8_t>(std::clamp(sum >> weight_bits, 0, 255));
}

Image resize_width(const Image& image, int width, Filter filter) {
  const Taps taps = make_taps(image.width, width, filter);
  Image out{width, image.height, std::vector<uint8_t>(static_cast<size_t>(width) * image.height * 3)};
  at::parallel_for(0, image.height, 16, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const uint8_t* row = &image.rgb[y * image.width * 3];
      uint8_t* to = &out.rgb[y * width * 3];
      for (int x = 0; x < width; ++x, to += 3) {
        const uint8_t* from = row + 3 * static_cast<int64_t>(taps.first[x]);
        const int* weights = &taps.weights[static_cast<size_t>(x) * taps.stride];
        int r = half, g = half, b = half;
        for (int k = 0; k < taps.count[x]; ++k, from += 3) {
          r += from[0] * weights[k];
          g += from[1] * weights[k];
          b += from[2] * weights[k];
        }
        to[0] = to_byte(r);
        to[1] = to_byte(g);
        to[2] = to_byte(b);
      }
    }
  });
  return out;
}

Image resize_height(const Image& image, int height, Filter filter) {
  const Taps taps = make_taps(image.height, height, filter);
  const int64_t row_bytes = static_cast<int64_t>(image.width) * 3;
  Image out{image.width, height, std::vector<uint8_t>(static_cast<size_t>(row_bytes) * height)};
  at::parallel_for(0, height, 16, [&](int64_t begin, int64_t end) {
    std::vector<int> sums(row_bytes);
    for (int64_t y = begin; y < end; ++y) {
      std::fill(sums.begin(), sums.end(), half);
      const uint8_t* from = &image.rgb[taps.first[y] * row_bytes];
      for (int k = 0; k < taps.count[y]; ++k, from += row_bytes) {
        const int weight = taps.weights[y * taps.stride + k];
        for (int64_t i = 0; i < row_bytes; ++i) sums[i] += from[i] * weight;
      }
      std::transform(sums.begin(), sums.end(), &out.rgb[y * row_bytes], to_byte);
    }
  });
  return out;
}

int nearest_multiple(double value, int factor) {
  return static_cast<int>(std::nearbyint(value / factor)) * factor;  // halves to even, as in Python
}

}  // namespace

Image resize(const Image& image, int width, int height, Filter filter) {
  check(width > 0 && height > 0, "cannot resize a picture to ", width, " x ", height);
  check(image.width > 0 && image.height > 0, "cannot resize an empty picture");
  if (width == image.width && height == image.height) return image;
  if (height == image.height) return resize_width(image, width, filter);
  if (width == image.width) return resize_height(image, height, filter);
  // The order shows in the last bit. Pillow 13 starts with the height when that sheds far more; older ones
  // never do.
  const bool height_first =
      height < image.height && image.height - height > 2 * (int64_t{image.width} - width);
  if (height_first) return resize_width(resize_height(image, height, filter), width, filter);
  return resize_height(resize_width(image, width, filter), height, filter);
}

Size scaled(const Image& image, double scale) {
  const auto side = [&](int of) { return std::max(1, static_cast<int>(std::lround(of * scale))); };
  return {side(image.height), side(image.width)};
}

Size detail::smart_resize_between(int height, int width, int factor, double min_pixels, double max_pixels,
                                  bool thin_grows) {
  check(height > 0 && width > 0, "an image of ", width, " x ", height, " pixels has no content");
  const double ratio = static_cast<double>(std::max(height, width)) / std::min(height, width);
  check(ratio <= 200, "the image is ", width, " x ", height, " pixels, an aspect ratio of ", ratio,
        "; at most 200 is supported");
  const double area = static_cast<double>(height) * width;
  const int least = thin_grows ? 0 : factor;
  int h = std::max(least, nearest_multiple(height, factor));
  int w = std::max(least, nearest_multiple(width, factor));
  const double rounded_area = static_cast<double>(h) * w;
  if (rounded_area > max_pixels) {
    const double shrink = std::sqrt(area / max_pixels);
    h = static_cast<int>(std::floor(height / shrink / factor)) * factor;
    w = static_cast<int>(std::floor(width / shrink / factor)) * factor;
  } else if (rounded_area < min_pixels) {
    const double grow = std::sqrt(min_pixels / area);
    h = static_cast<int>(std::ceil(height * grow / factor)) * factor;
    w = static_cast<int>(std::ceil(width * grow / factor)) * factor;
  }
  return {h, w};
}

Size smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels,
                  bool thin_grows) {
  return detail::smart_resize_between(height, width, factor, static_cast<double>(min_pixels),
                                      static_cast<double>(max_pixels), thin_grows);
}

Size smart_resize_strict(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels) {
  check(height >= factor && width >= factor, "the image is ", width, " x ", height,
        " pixels; both sides must be at least ", factor);
  return smart_resize(height, width, factor, min_pixels, max_pixels);
}

}  // namespace glimpse
