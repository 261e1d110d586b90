#include "glimpse/train/optimiser.h"

#include <ATen/core/grad_mode.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <numbers>

#include "glimpse/base/check.h"

namespace glimpse {

using torch::optim::AdamWParamState;

Fields OptimiserOptions::fields() {
  Fields fields;
  fields.add("lr", lr, "highest learning rate", {0, 10})
      .add("warmup_ratio", warmup_ratio, "share of the steps in which it rises; then it falls as a cosine",
           {0, 1})
      .add("weight_decay", weight_decay, "AdamW's weight decay", {0, 1})
      .add("beta1", beta1, "AdamW's decay of the mean", {0, 1})
      .add("beta2", beta2, "AdamW's decay of the variance", {0, 1})
      .add("eps", eps, "AdamW's epsilon", {0, 1})
      .add("max_grad_norm", max_grad_norm, "longer gradients are shortened to this (0: never)", {0, 1e9});
  return fields;
}

double learning_rate_factor(int64_t step, int64_t total, double warmup_ratio) {
  const auto warmup = static_cast<int64_t>(std::ceil(warmup_ratio * static_cast<double>(total)));
  if (step < warmup) return static_cast<double>(step) / static_cast<double>(warmup);
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(1, total - warmup));
  return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
}

Optimiser::Optimiser(const std::map<std::string, at::Tensor>& parameters, const OptimiserOptions& options)
    : parameters_(parameters), options_(options) {
  std::vector<at::Tensor> list;
  for (const auto& [name, tensor] : parameters_) list.push_back(tensor);
  adamw_ = std::make_unique<torch::optim::AdamW>(list, torch::optim::AdamWOptions(options.lr)
                                                           .betas({options.beta1, options.beta2})
                                                           .eps(options.eps)
                                                           .weight_decay(options.weight_decay));
}

Optimiser::~Optimiser() = default;

double Optimiser::step(double lr) {
  std::vector<at::Tensor> list;
  for (const auto& [name, tensor] : parameters_) list.push_back(tensor);
  const double limit = options_.max_grad_norm > 0 ? options_.max_grad_norm : HUGE_VAL;
  const double norm = torch::nn::utils::clip_grad_norm_(list, limit);
  check(std::isfinite(norm), "training: the gradients are not finite (norm ", norm,
        "); the last checkpoint is as it was. Try a lower lr or dtype fp32");
  static_cast<torch::optim::AdamWOptions&>(adamw_->param_groups()[0].options()).lr(lr);
  adamw_->step();
  adamw_->zero_grad();
  return norm;
}

std::map<std::string, at::Tensor> Optimiser::state() const {
  std::map<std::string, at::Tensor> out;
  int64_t steps = 0;
  for (const auto& [name, tensor] : parameters_) {
    out["parameter/" + name] = tensor.detach().cpu().clone();
    const auto found = adamw_->state().find(tensor.unsafeGetTensorImpl());
    if (found == adamw_->state().end()) continue;
    const auto& state = static_cast<const AdamWParamState&>(*found->second);
    out["exp_avg/" + name] = state.exp_avg().cpu().clone();
    out["exp_avg_sq/" + name] = state.exp_avg_sq().cpu().clone();
    steps = state.step();
  }
  out["steps"] = at::tensor({steps}, at::kLong);
  return out;
}

void Optimiser::load_state(const std::map<std::string, at::Tensor>& state, const std::string& source) {
  const at::NoGradGuard no_grad;
  const auto find = [&](const std::string& name, at::IntArrayRef shape) {
    const auto found = state.find(name);
    check(found != state.end(), source, ": '", name, "' is missing");
    check(found->second.sizes() == shape, source, ": '", name, "' has ", found->second.numel(),
          " values in another shape than the parameter");
    return found->second;
  };
  const int64_t steps = find("steps", {1}).item<int64_t>();
  for (auto& [name, tensor] : parameters_) {
    tensor.copy_(find("parameter/" + name, tensor.sizes()));
    if (steps == 0) continue;
    auto param = std::make_unique<AdamWParamState>();
    param->step(steps);
    param->exp_avg(find("exp_avg/" + name, tensor.sizes()).to(tensor.device()).clone());
    param->exp_avg_sq(find("exp_avg_sq/" + name, tensor.sizes()).to(tensor.device()).clone());
    adamw_->state()[tensor.unsafeGetTensorImpl()] = std::move(param);
  }
}

}  // namespace glimpse
