// A program outside the tree that uses an installed glimpse: one call into libglimpse, one into libtorch.
#include <ATen/ATen.h>

#include <iostream>

#include "glimpse/base/check.h"

int main() {
  const auto ones = at::ones({2, 3}).sum().item<float>();
  std::cout << ones << ' ' << glimpse::edit_distance("glimpse", "glimpsed") << '\n';
}
