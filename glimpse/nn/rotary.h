#pragma once

#include <ATen/ATen.h>

namespace glimpse {

/// Rotary tables, float32: one row per token, one column per rotated pair.
struct Rope {
  at::Tensor cos, sin;  ///< [T, d / 2]

  /// The rows `index` [T'] int64.
  Rope rows(const at::Tensor& index) const {
    return {cos.index_select(0, index), sin.index_select(0, index)};
  }
};

/// theta^(-2t / dim) for t < dim / 2, float32.
at::Tensor inverse_frequencies(int64_t dim, double theta);
/// The same on a device, where they are kept: may be called from several threads.
at::Tensor inverse_frequencies(int64_t dim, double theta, at::Device device);

/// Tables from angles [T, d / 2].
Rope rope_from_angles(const at::Tensor& angles);

/// Tables of plain rotary embedding: positions [T] int64, the frequencies of `head_dim` and `theta`.
Rope rope_tables(const at::Tensor& positions, int64_t head_dim, double theta);

/// Rotates x [T, H, d] by its rows' tables (rotate-half convention, float32 arithmetic); in place where
/// autograd allows. Returns the result in x's type.
at::Tensor apply_rope(const at::Tensor& x, const Rope& rope);

}  // namespace glimpse
