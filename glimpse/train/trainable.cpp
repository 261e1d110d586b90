#include "glimpse/train/trainable.h"

#include "glimpse/base/json_file.h"
#include "glimpse/engine/engine.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/models/config.h"
#include "glimpse/train/modules.h"
#include "glimpse/train/scout.h"
#include "glimpse/train/tune.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;

class TrainableGlimpse : public Trainable {
 public:
  TrainableGlimpse(const Vlm& model, TrainableModules modules)
      : model_(model), modules_(std::move(modules)) {}
  const std::map<std::string, at::Tensor>& parameters() const override { return modules_.parameters(); }
  std::vector<std::string> value_names() const override { return loss_names(); }
  void learn(std::span<const Example> examples, const LossOptions& options, const Take& take) override {
    std::vector<Learned> out;
    for (const ExampleLoss& loss : training_losses(
             model_, modules_.modules(model_.decoder().options(), modules_.dropout()), examples, options))
      out.push_back(learned(loss));
    take(out);
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

// Ids that end an answer, as Engine::load takes them from a model's folder.
std::vector<int64_t> answer_ends(const fs::path& base) {
  for (const char* file : {"generation_config.json", "config.json"}) {
    if (!fs::exists(base / file)) continue;
    const std::vector<int64_t> ids = end_ids(read_json(base / file), (base / file).string());
    if (!ids.empty()) return ids;
  }
  fail(base.string(), ": neither generation_config.json nor config.json names an eos_token_id");
}

// What a frozen model's work depends on beside what it works on.
std::string origin_of(const Vlm& model, const fs::path& base) {
  return concat(weights_fingerprint(base), " ",
                c10::toString(model.decoder().options().dtype().toScalarType()));
}

// For what the encoder gives for pictures.
std::unique_ptr<PrefixCache> picture_cache(const TrainOptions& options, const Vlm& model,
                                           const fs::path& base) {
  return make_prefix_cache(
      static_cast<size_t>(options.cache_mb), open_cache_folder(options.cache_dir, options.cache_disk_gb),
      model.decoder().options().device(), [&] { return "pictures " + origin_of(model, base); });
}

// What a scout learns from: boxes alone, or a teacher, too.
LessonOptions lessons_of(const TrainOptions& options, const Vlm& model, const fs::path& base) {
  LessonOptions lessons;
  lessons.cache_mb = static_cast<size_t>(options.cache_mb);
  if (options.loss.distil_weight != 0) {
    check(!options.teacher.empty() || options.model.empty(),
          "training a scout: name the modules that it learns from with --teacher, or set --distil-weight 0");
    const fs::path dir =
        options.teacher.empty() ? builtin_model_dir() / "new_modules" : resolve_model_dir(options.teacher);
    lessons.teacher = GlimpseModules::load(dir, base_shape(model), model.decoder().options());
    lessons.teacher_origin = weights_fingerprint(dir);
  }
  lessons.folder = open_cache_folder(options.cache_dir, options.cache_disk_gb);
  if (lessons.folder) lessons.origin = origin_of(model, base);
  return lessons;
}

}  // namespace

const std::vector<std::string>& loss_names() {
  static const std::vector<std::string> names = {"le_loss", "loc_loss", "dice", "bce"};
  return names;
}

Learned learned(const ExampleLoss& loss) {
  const at::Tensor values = at::stack({loss.le, loss.loc, loss.dice.sum(), loss.bce.sum()});
  return {loss.total, values.detach().to(at::kFloat), loss.vip_logits[-1].detach()};
}

std::unique_ptr<Trainable> make_trainable(const TrainOptions& options, Vlm& model, const fs::path& base,
                                          const fs::path& notes) {
  const BaseShape shape = base_shape(model);
  const at::Device device = model.decoder().options().device();
  const fs::path start = options.new_modules.empty() ? "" : resolve_model_dir(options.new_modules);
  if (options.tune) {
    TuneSetup setup{answer_ends(base), options.seed, fs::path(notes).concat("judged.jsonl"),
                    options.model,     nullptr,      picture_cache(options, model, base)};
    if (!start.empty()) setup.modules = GlimpseModules::load(start, shape, model.decoder().options());
    return std::make_unique<TrainableAdapter>(model, *options.tune, std::move(setup));
  }
  if (!options.scout.empty()) {
    LessonOptions lessons = lessons_of(options, model, base);
    return start.empty() ? TrainableScout::create(model, options.scout, std::move(lessons), options.seed)
                         : TrainableScout::load(model, start, options.scout, std::move(lessons));
  }
  check(options.cache_dir.empty(), "--cache-dir is for training a scout");
  check(options.teacher.empty(), "--teacher is for training a scout");
  return std::make_unique<TrainableGlimpse>(
      model, start.empty()
                 ? TrainableModules::create(pruning_config(read_json(base / "config.json"), options.modules),
                                            shape, options.seed, device)
                 : TrainableModules::load(start, shape, device));
}

}  // namespace glimpse
