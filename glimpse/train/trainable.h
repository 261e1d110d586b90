#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "glimpse/train/forward.h"
#include "glimpse/train/options.h"

namespace glimpse {

/// What a trainer trains: parameters, their losses, and what comes of them.
class Trainable {
 public:
  virtual ~Trainable() = default;
  /// float32 leaves by name, sorted; each requires gradients.
  virtual const std::map<std::string, at::Tensor>& parameters() const = 0;
  virtual std::vector<ExampleLoss> losses(std::span<const Example> examples,
                                          const LossOptions& options) const = 0;
  /// Which of the visual tokens stay for their logits [N], ascending.
  virtual std::vector<int64_t> keep(const at::Tensor& logits) const = 0;
  /// What it is now, as inference would use it.
  virtual std::shared_ptr<const Pruner> pruner() const = 0;
  /// Writes the modules into `dir` (created), in `dtype`.
  virtual void save(const std::filesystem::path& dir, at::ScalarType dtype) const = 0;
};

/// Glimpse token and predictor (method.md section 5), or where the options have settings of a scout that one
/// (docs/early_cut.md): new, or those that the options go on from. `base` is the model's folder.
/// The model must outlive it.
std::unique_ptr<Trainable> make_trainable(const TrainOptions& options, const Vlm& model,
                                          const std::filesystem::path& base);

}  // namespace glimpse
