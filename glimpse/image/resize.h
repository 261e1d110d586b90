#pragma once

#include "glimpse/image/image.h"

namespace glimpse {

enum class Filter { bilinear, bicubic };

/// The picture at `width` x `height`, antialiased, with exactly the bytes Pillow 13's
/// `Image.resize((width, height), BICUBIC or BILINEAR)` gives. Throws Error for sizes that are not positive.
Image resize(const Image& image, int width, int height, Filter filter = Filter::bicubic);

struct Size {
  int height = 0;
  int width = 0;
  bool operator==(const Size&) const = default;
};

/// The picture's sides times `scale`, rounded; at least 1.
Size scaled(const Image& image, double scale);

/// The size nearest to `height` x `width` whose sides are multiples of `factor` and whose area lies between
/// `min_pixels` and `max_pixels`, as the Qwen2-VL data loader (qwen_vl_utils) computes it. A very long
/// picture under a small `max_pixels` can come out with a side of 0. Throws Error for a side below 1 and for
/// an aspect ratio above 200. `thin_grows`: as later Hugging Face image processors do, a picture with a side
/// that rounds to 0 is enlarged like one below `min_pixels`.
Size smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels,
                  bool thin_grows = false);

/// The same as the Hugging Face image processor computes it: also throws Error for a side below `factor`.
Size smart_resize_strict(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels);

}  // namespace glimpse
