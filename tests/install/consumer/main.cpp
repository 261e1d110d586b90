// A program outside the tree that uses an installed glimpse: one call into libglimpse, one into libtorch,
// and a video, if one is named.
#include <ATen/ATen.h>

#include <iostream>

#include "glimpse/base/check.h"
#include "glimpse/image/video.h"

int main(int count, char** arguments) {
  const auto ones = at::ones({2, 3}).sum().item<float>();
  std::cout << ones << ' ' << glimpse::edit_distance("glimpse", "glimpsed");
  if (count > 1) std::cout << ' ' << glimpse::open_video(std::filesystem::path(arguments[1]))->info().frames;
  std::cout << '\n';
}
