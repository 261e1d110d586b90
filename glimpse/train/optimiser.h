#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <string>

#include "glimpse/base/options.h"

namespace torch::optim {
class AdamW;
}

namespace glimpse {

/// AdamW and what surrounds its step (method.md section 5).
struct OptimiserOptions {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double max_grad_norm = 1.0;  ///< 0: gradients are not clipped
  double warmup_ratio = 0.1;

  Fields fields();
};

/// Cosine schedule with linear warm-up: the factor of the learning rate at step `step` (from 0) of `total`;
/// warm-up takes ceil(ratio * total) steps, the first of which has factor 0, as in Hugging Face's trainer.
double learning_rate_factor(int64_t step, int64_t total, double warmup_ratio);

class Optimiser {
 public:
  /// `parameters` are float32 leaves and share their gradients with the caller.
  Optimiser(const std::map<std::string, at::Tensor>& parameters, const OptimiserOptions& options);
  ~Optimiser();

  /// Clips the gradients, takes one step at learning rate `lr`, clears the gradients. Returns their L2 norm
  /// before clipping. Error, and no step, when it is not finite.
  double step(double lr);

  /// Parameters and moments by name: "parameter/<name>", "exp_avg/<name>", "exp_avg_sq/<name>", and "steps".
  std::map<std::string, at::Tensor> state() const;
  /// Takes up a state() of the same parameters. Error naming what is missing or has another shape.
  void load_state(const std::map<std::string, at::Tensor>& state, const std::string& source);

 private:
  std::map<std::string, at::Tensor> parameters_;
  OptimiserOptions options_;
  std::unique_ptr<torch::optim::AdamW> adamw_;
};

}  // namespace glimpse
