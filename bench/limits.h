#pragma once

#include <cstdint>

#include "bench/rows.h"

namespace glimpse::bench {

/// What this machine can do, as far as ordinary programs can show it.
struct Limits {
  double bytes_per_s = 0;  ///< reading memory; 0 if not measured
  double flops_per_s = 0;  ///< matrix products; 0 if not measured

  std::optional<double> share_of_flops(double flops, double ms) const;
  std::optional<double> share_of_bytes(double bytes, double ms) const;
};

/// A product [m, k] x [k, n].
struct GemmShape {
  int64_t m = 0, k = 0, n = 0;
};

/// Measures both with the threads that ATen uses now: reading `buffer_mib` of memory, and the best of bf16
/// at::linear, glimpse::Linear and float32 mm over the shapes (float32 is the higher limit where bf16
/// products are emulated).
Limits measure_limits(int64_t buffer_mib, const std::vector<GemmShape>& shapes, Rows& rows);

}  // namespace glimpse::bench
