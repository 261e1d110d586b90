#pragma once

#include "glimpse/image/video.h"
#include "image/golden_arrays.h"

/// The clips that tests/image/make_videos.py wrote.
namespace glimpse::test {

inline const std::filesystem::path clips = data_root / "videos";

/// Pixels of one of the eight blocks that a clip's frames consist of, from `top` to `bottom` of its height,
/// but for the edges.
inline std::vector<double> mean_of(const Image& frame, int block, double top = 0, double bottom = 1,
                                   int edge = 0) {
  const int width = frame.width / 4, height = frame.height / 2;
  const int left = block % 4 * width, upper = block / 4 * height;
  std::vector<double> sums(3);
  int count = 0;
  for (int y = upper + static_cast<int>(top * height) + edge;
       y < upper + static_cast<int>(bottom * height) - edge; ++y)
    for (int x = left + edge; x < left + width - edge; ++x, ++count)
      for (int c = 0; c < 3; ++c) sums[c] += frame.rgb[(size_t(y) * frame.width + x) * 3 + c];
  for (double& sum : sums) sum /= count;
  return sums;
}

/// The number that a frame of these clips shows.
inline int64_t number_of(const Image& frame) {
  int64_t number = 0;
  for (int block = 0; block < 8; ++block)
    if (mean_of(frame, block, 0, 0.5, 2)[1] > 128) number |= int64_t{1} << block;
  return number;
}

/// The numbers of the frames at these indices.
inline std::vector<int64_t> numbers_of(const VideoSource& video, const std::vector<int64_t>& indices) {
  std::vector<int64_t> numbers(indices.size(), -1);
  video.read(indices, [&](size_t i, const Image& frame) { numbers.at(i) = number_of(frame); });
  return numbers;
}

/// A frame that shows a number.
inline Image numbered(int64_t number, int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height, 20)};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      if (number >> (y / (height / 2) % 2 * 4 + std::min(x / (width / 4), 3)) & 1)
        std::fill_n(&image.rgb[(size_t(y) * width + x) * 3], 3, uint8_t{230});
  return image;
}

}  // namespace glimpse::test
