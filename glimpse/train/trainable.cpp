#include "glimpse/train/trainable.h"

#include "glimpse/engine/engine.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/train/modules.h"
#include "glimpse/train/scout.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;

class TrainableGlimpse : public Trainable {
 public:
  TrainableGlimpse(const Vlm& model, TrainableModules modules)
      : model_(model), modules_(std::move(modules)) {}
  const std::map<std::string, at::Tensor>& parameters() const override { return modules_.parameters(); }
  std::vector<ExampleLoss> losses(std::span<const Example> examples,
                                  const LossOptions& options) const override {
    return training_losses(model_, modules_.modules(model_.decoder().options(), modules_.dropout()), examples,
                           options);
  }
  std::vector<int64_t> keep(const at::Tensor& logits) const override {
    return modules_.config().rule.apply(logits);
  }
  std::shared_ptr<const Pruner> pruner() const override {
    return std::make_shared<GlimpsePruner>(modules_.modules(model_.decoder().options(), 0.0),
                                           modules_.config().rule);
  }
  void save(const fs::path& dir, at::ScalarType dtype) const override { modules_.save(dir, dtype); }

 private:
  const Vlm& model_;
  TrainableModules modules_;
};

// The modules that a scout learns from; null if it has only boxes to learn from.
std::shared_ptr<const GlimpseModules> teacher_of(const TrainOptions& options, const Vlm& model) {
  if (options.loss.distil_weight == 0) return nullptr;
  check(!options.teacher.empty() || options.model.empty(),
        "training a scout: name the modules that it learns from with --teacher, or set --distil-weight 0");
  const fs::path dir =
      options.teacher.empty() ? builtin_model_dir() / "new_modules" : resolve_model_dir(options.teacher);
  return GlimpseModules::load(dir, base_shape(model), model.decoder().options());
}

}  // namespace

std::unique_ptr<Trainable> make_trainable(const TrainOptions& options, const Vlm& model,
                                          const nlohmann::json& config) {
  const BaseShape shape = base_shape(model);
  const at::Device device = model.decoder().options().device();
  const fs::path start = options.new_modules.empty() ? "" : resolve_model_dir(options.new_modules);
  if (!options.scout.empty()) {
    auto teacher = teacher_of(options, model);
    return start.empty()
               ? TrainableScout::create(model, options.scout, teacher, options.cache_mb, options.seed)
               : TrainableScout::load(model, start, options.scout, teacher, options.cache_mb);
  }
  check(options.teacher.empty(), "--teacher is for training a scout");
  return std::make_unique<TrainableGlimpse>(
      model, start.empty() ? TrainableModules::create(pruning_config(config, options.modules), shape,
                                                      options.seed, device)
                           : TrainableModules::load(start, shape, device));
}

}  // namespace glimpse
