#include "glimpse/train/modules.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/io/torch_zip.h"
#include "glimpse/models/vlm.h"

namespace glimpse {

namespace {

// Every setting, with what the published configs have in common (method.md section 1).
const nlohmann::json& pruning_defaults() {
  static const nlohmann::json defaults = {{"selected_layers", nullptr},
                                          {"reduce_layer", nullptr},
                                          {"use_attention_logits", true},
                                          {"attn_fuse_type", "AttnFuserV1"},
                                          {"attn_fuse_size", 256},
                                          {"visual_cond_size", 512},
                                          {"attn_fuse_num_heads", 4},
                                          {"attn_fuse_hidden_act", "silu"},
                                          {"attn_fuse_global", true},
                                          {"selected_visual_layers", nullptr},
                                          {"ori_attn_supervision", false},
                                          {"deep_supervision", false},
                                          {"le_length", 1},
                                          {"le_layers", nullptr},
                                          {"le_dropout_prob", 0.1},
                                          {"le_norm_type", "rmsnorm"},
                                          {"reduce_threshold", 0.5},
                                          {"min_remain_num", 1},
                                          {"max_remain_ratio", nullptr},
                                          {"anchor_positions", nlohmann::json::array()},
                                          {"use_ref_masks", false},
                                          {"use_zero_masks", false}};
  return defaults;
}

at::Tensor initial_value(const std::string& name, at::IntArrayRef shape, at::Generator generator) {
  at::Tensor value = at::zeros(shape, at::kFloat);
  if (name == "learnable_embeddings") return value.normal_(0.0, 0.02, generator);
  if (name.ends_with(".bias")) return value;
  if (shape.size() == 1) return value.fill_(1.0);
  const double bound = std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1]));
  return value.uniform_(-bound, bound, generator);
}

}  // namespace

nlohmann::json pruning_config(nlohmann::json base, const nlohmann::json& pruning) {
  check(pruning.is_object(), "modules: expected a mapping of pruning settings");
  nlohmann::json settings = pruning_defaults();
  std::vector<std::string> known;
  for (const auto& [name, value] : settings.items()) known.push_back(name);
  for (const auto& [name, value] : pruning.items()) {
    if (!settings.contains(name)) {
      const std::string near = nearest(name, known);
      fail("modules: unknown setting '", name, "'",
           near.empty() ? "" : concat("; did you mean '", near, "'?"));
    }
    settings[name] = value;
  }
  const nlohmann::json& text = base.contains("text_config") ? base["text_config"] : base;
  if (settings["le_layers"].is_null()) {
    settings["le_layers"] = nlohmann::json::array();
    for (int64_t l = 0; l < text.value("num_hidden_layers", int64_t{0}); ++l)
      settings["le_layers"].push_back(l);
  }
  base["model_type"] = model_type_with_modules(base.value("model_type", std::string()));
  base.update(settings);
  return base;
}

TrainableModules::TrainableModules(nlohmann::json config, const BaseShape& base)
    : json_(std::move(config)), base_(base), config_(GlimpseConfig::from_json(json_, base)) {
  for (const char* scout : {"scout", "encoder_scout"})
    json_.erase(scout);  // whose files are not written here
  const auto supervised = json_.find("ori_attn_supervision");
  check(supervised == json_.end() || supervised->is_null() || *supervised == false,
        "pruning config: ori_attn_supervision is not supported in training");
  check(config_.vip.type != VipConfig::Type::dummy,
        "attn_fuse_type AttnFuserDummy has no parameters to train");
}

void TrainableModules::adopt(const std::string& name, const at::Tensor& value) {
  parameters_[name] = value.detach().to(at::kFloat).contiguous().clone().requires_grad_(true);
}

TrainableModules TrainableModules::load(const std::filesystem::path& dir, const BaseShape& base,
                                        at::Device device) {
  TrainableModules out(read_json(dir / "config.json"), base);
  const Weights weights = Weights::open(new_modules_file(dir));
  // Only what the modules use is trained.
  GlimpseModules::build(out.config_, Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
                          const at::Tensor value = weights.take(name, shape, at::kFloat);
                          out.adopt(name, value.to(device));
                          return value;
                        }),
                        base, at::TensorOptions(at::kFloat));
  return out;
}

TrainableModules TrainableModules::create(const nlohmann::json& config, const BaseShape& base, uint64_t seed,
                                          at::Device device) {
  TrainableModules out(config, base);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  GlimpseModules::build(out.config_, Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
                          const at::Tensor value = initial_value(name, shape, generator);
                          out.adopt(name, value.to(device));
                          return value;
                        }),
                        base, at::TensorOptions(at::kFloat));
  return out;
}

std::shared_ptr<const GlimpseModules> TrainableModules::modules(at::TensorOptions options,
                                                                double dropout) const {
  return std::make_shared<GlimpseModules>(GlimpseModules::build(
      config_, Weights::from(parameters_, "the modules in training"), base_, options, dropout));
}

double TrainableModules::dropout() const {
  const auto found = json_.find("le_dropout_prob");
  if (found == json_.end() || found->is_null()) return 0.1;
  check(found->is_number() && *found >= 0 && *found < 1, "pruning config: le_dropout_prob ", found->dump(),
        " is no number in [0, 1)");
  return found->get<double>();
}

void TrainableModules::save(const std::filesystem::path& dir, at::ScalarType dtype) const {
  std::filesystem::create_directories(dir);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : parameters_)
    tensors[name] = tensor.detach().to(at::TensorOptions(at::kCPU).dtype(dtype));
  save_torch_zip(dir / "new_modules_gp.pt", tensors, {"attn_fuser", "le_proj", "le_norm"});
  save_safetensors(dir / "new_modules_gp.safetensors", tensors, {{"format", "pt"}});
  AtomicFile config(dir / "config.json");
  config.stream() << json_.dump(2) << "\n";
  config.commit();
}

}  // namespace glimpse
