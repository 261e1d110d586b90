#include "bench/random_model.h"

#include "glimpse/base/check.h"
#include "glimpse/io/yaml.h"

namespace glimpse::bench {

namespace {

using nlohmann::json;

Weights random_weights(at::TensorOptions options) {
  return Weights::fresh([options](const std::string& name, at::IntArrayRef shape) {
    const bool norm = name.find("norm") != name.npos || name.find("ln_q") != name.npos;
    return norm && name.ends_with(".weight") ? at::ones(shape, options)
                                             : at::empty(shape, options).normal_(0.0, 0.02);
  });
}

class RandomSource : public ModelSource {
 public:
  RandomSource(json config, at::TensorOptions options) : config_(std::move(config)), options_(options) {}

  std::filesystem::path path() const override { return "random weights"; }
  std::string where(const std::string& file) const override { return file + " of random weights"; }
  json config() const override { return config_; }
  json settings(const std::string&) const override { return {}; }
  Weights weights(Weights::Rename) const override { return random_weights(options_); }
  std::unique_ptr<Tokenizer> tokenizer() const override { return nullptr; }
  void write_companions(const std::filesystem::path&) const override {}

 private:
  const json config_;
  const at::TensorOptions options_;
};

}  // namespace

std::unique_ptr<Engine> random_engine(const json& shape, const std::filesystem::path& configs,
                                      at::Device device) {
  const at::TensorOptions options = at::TensorOptions(at::kBFloat16).device(device);
  LoadOptions load;
  load.device = device;
  load.config_overrides = shape.at("new_modules");
  std::unique_ptr<Vlm> model = load_vlm(RandomSource(shape.at("model"), options), load);
  json modules = shape.at("model");
  modules.update(shape.at("new_modules"));
  const BaseShape base = base_shape(*model);
  auto glimpse = std::make_shared<GlimpseModules>(GlimpseModules::build(
      GlimpseConfig::from_json(modules, base), random_weights(options.dtype(at::kFloat)), base, options));
  glimpse->vip.use_bf16();
  const auto scout = [&](const char* member) -> std::shared_ptr<const Scout> {
    const auto file = configs / concat(shape.value("configs", ""), "_", member, ".yaml");
    if (!std::filesystem::exists(file)) return nullptr;
    const auto config = ScoutConfig::from_json(read_yaml(file).at("scout"), base.vision_depth);
    return std::make_shared<const Scout>(Scout::build(config, random_weights(options.dtype(at::kFloat)),
                                                      base.hidden_size, base.vision_width, device));
  };
  ModuleSets sets;
  sets.add("", std::move(glimpse), scout("scout"), scout("encoder_scout"));
  return std::make_unique<Engine>(std::move(model), std::move(sets));
}

}  // namespace glimpse::bench
