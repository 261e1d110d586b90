#pragma once

#include <cstdint>

#include "bench/rows.h"
#include "glimpse/nn/decoder.h"

namespace glimpse::bench {

/// What this machine can do, as far as ordinary programs can show it. 0: not measured.
struct Limits {
  double flops_per_s = 0;       ///< products of float32 or bf16 matrices
  double int8_flops_per_s = 0;  ///< products of 8-bit matrices

  std::optional<double> share_of_flops(double flops, double ms) const;
  /// The limits of a model whose linear layers multiply in 8 bits.
  Limits of_int8() const { return {int8_flops_per_s, int8_flops_per_s}; }

  /// Those that an earlier run measured on this machine, as far as it did.
  static Limits earlier(const Rows& rows);
};

/// Bytes per second at which the threads read the decoder's weights, once. On a machine whose memory others
/// use too it drifts within minutes, so decoding is compared with what was read right before it.
double weights_read_rate(const Decoder& decoder);

/// A product [m, k] x [k, n].
struct GemmShape {
  int64_t m = 0, k = 0, n = 0;
};

/// Measures them with the threads that ATen uses now: reading `buffer_mib` of memory; the best of bf16
/// at::linear, glimpse::Linear and float32 mm over the shapes (float32 is the higher limit where bf16
/// products are emulated); the best of oneDNN's and glimpse's 8-bit linear layers. Beside the best products
/// stands their share of what the CPU does in registers alone.
Limits measure_limits(int64_t buffer_mib, const std::vector<GemmShape>& shapes, Rows& rows);

}  // namespace glimpse::bench
