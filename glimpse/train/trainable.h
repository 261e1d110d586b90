#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "glimpse/train/forward.h"
#include "glimpse/train/options.h"

namespace glimpse {

/// What came of one example.
struct Learned {
  at::Tensor total;   ///< its loss, a scalar attached to the gradients
  at::Tensor values;  ///< float32, detached: of Trainable::value_names()
  at::Tensor logits;  ///< [N] of visual tokens, by which a predictor that trains decides; or undefined
};

using Take = std::function<void(std::span<const Learned>)>;

/// An answer for people.
struct ShownAnswer {
  std::string text;
  std::optional<double> score;  ///< if there is one
};

/// What a trainer trains: parameters, their losses, and what comes of them.
class Trainable {
 public:
  virtual ~Trainable() = default;
  /// float32 leaves by name, sorted; each requires gradients.
  virtual const std::map<std::string, at::Tensor>& parameters() const = 0;
  /// What is logged, as means over the examples.
  virtual std::vector<std::string> value_names() const = 0;
  /// Gives `take` what came of the examples, in their order: together those whose graphs share something,
  /// else each before the next one's is built, so that `take` can go back through it and let it go.
  virtual void learn(std::span<const Example> examples, const LossOptions& options, const Take& take) = 0;
  /// Error for an example that it does not train on.
  virtual void check_example(const Example&) const {}
  /// Which of the visual tokens stay for their logits [N], ascending.
  virtual std::vector<int64_t> keep(const at::Tensor&) const { return {}; }
  /// What it is now, as inference would use it; null if it prunes nothing.
  virtual std::shared_ptr<const Pruner> pruner() const { return nullptr; }
  /// Something that it did last, for people, or "".
  virtual std::string sample() const { return {}; }
  /// What it answers to an example now, whatever the random numbers; nothing if it answers nothing.
  virtual std::optional<ShownAnswer> answer(const Example&) { return std::nullopt; }
  /// Writes the modules into `dir` (created), in `dtype`.
  virtual void save(const std::filesystem::path& dir, at::ScalarType dtype) const = 0;
};

/// As values: le, loc and the sums of dice and bce.
const std::vector<std::string>& loss_names();
Learned learned(const ExampleLoss& loss);

/// Glimpse token and predictor (method.md section 5), or where the options have settings of a scout that one
/// (docs/early_cut.md), or where they tune an adapter (section 6): new, or those that the options go on from.
/// `base` is the model's folder; beside `notes` it may keep files of its own. The model must outlive it.
std::unique_ptr<Trainable> make_trainable(const TrainOptions& options, Vlm& model,
                                          const std::filesystem::path& base,
                                          const std::filesystem::path& notes);

}  // namespace glimpse
