#pragma once

#include <ATen/ATen.h>

namespace glimpse::test {

/// Whether |got - expected| <= absolute + relative |expected| everywhere; NaN and other shapes are never
/// near.
inline bool near(const at::Tensor& got, const at::Tensor& expected, double relative, double absolute) {
  return got.sizes() == expected.sizes() &&
         at::allclose(got.to(at::kDouble), expected.to(at::kDouble), relative, absolute);
}

}  // namespace glimpse::test
