#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <random>
#include <vector>

#include "glimpse/base/options.h"

namespace glimpse {

/// How the next token is chosen. Temperature 0 is greedy.
struct SamplingOptions {
  double temperature = 0;
  double top_p = 1;
  int64_t top_k = 0;
  double repetition_penalty = 1;
  std::optional<int64_t> seed;

  Fields fields();
};

/// Draws tokens for one sequence; the same seed gives the same tokens.
class Sampler {
 public:
  explicit Sampler(SamplingOptions options);
  /// logits [V] float32; `seen`: prompt and answer so far (for the repetition penalty).
  int64_t next(const at::Tensor& logits, const std::vector<int64_t>& seen);

 private:
  SamplingOptions options_;
  std::mt19937_64 generator_;
};

}  // namespace glimpse
