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
  int64_t next(const at::Tensor& logits, const std::vector<int64_t>& seen) {
    return draw(candidates(logits, seen).cpu());
  }

  /// The same in two steps, between which the candidates of several sequences come to the CPU together. First
  /// what can be drawn, beside the logits: [2, n] float64, ids and their probabilities, the likeliest first.
  at::Tensor candidates(const at::Tensor& logits, const std::vector<int64_t>& seen) const;
  /// Then one of them, on the CPU.
  int64_t draw(const at::Tensor& candidates);
  /// Whether there is only one candidate, the likeliest of the logits as they are.
  bool greedy() const { return options_.temperature <= 0 && options_.repetition_penalty == 1; }

 private:
  SamplingOptions options_;
  std::mt19937_64 generator_;
};

}  // namespace glimpse
