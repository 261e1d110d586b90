#pragma once

#include <ATen/ATen.h>

#include <map>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "glimpse/base/options.h"

namespace glimpse {

/// How the next token is chosen. Temperature 0 is greedy.
struct SamplingOptions {
  double temperature = 0;
  double top_p = 1;
  int64_t top_k = 0;
  double min_p = 0;
  double repetition_penalty = 1;                       ///< for tokens of prompt and answer
  double presence_penalty = 0, frequency_penalty = 0;  ///< for tokens of the answer
  std::map<int64_t, double> logit_bias;                ///< added to the logits of tokens
  std::optional<int64_t> seed;

  Fields fields();
};

/// Draws tokens for one sequence; the same seed gives the same tokens.
class Sampler {
 public:
  explicit Sampler(SamplingOptions options);
  /// Drawing has two steps, between which the candidates of several sequences come to the CPU together. First
  /// what can be drawn, beside the logits [V] float32: [2, n] float64, ids and their probabilities, the
  /// likeliest first. `seen`: prompt and answer so far, of which the last `answered` are the answer's.
  at::Tensor candidates(const at::Tensor& logits, std::span<const int64_t> seen, int64_t answered) const;
  /// Then one of them, on the CPU. Error (internal) if what the model gave is no number.
  int64_t draw(const at::Tensor& candidates);
  /// Whether there is only one candidate, the likeliest of the logits [V] as they are.
  bool greedy() const { return options_.temperature <= 0 && !changes_logits(); }

 private:
  bool changes_logits() const;
  at::Tensor penalised(at::Tensor logits, std::span<const int64_t> seen, int64_t answered) const;

  SamplingOptions options_;
  std::mt19937_64 generator_;
};

}  // namespace glimpse
