#include "glimpse/train/modules.h"

#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <cmath>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/io/torch_zip.h"

namespace glimpse {

namespace {

// Defaults are those of every published config (method.md section 1); layers must be named.
constexpr std::array kPruningFields = {"selected_layers",
                                       "reduce_layer",
                                       "use_attention_logits",
                                       "attn_fuse_type",
                                       "attn_fuse_size",
                                       "visual_cond_size",
                                       "attn_fuse_num_heads",
                                       "attn_fuse_hidden_act",
                                       "attn_fuse_global",
                                       "selected_visual_layers",
                                       "ori_attn_supervision",
                                       "deep_supervision",
                                       "le_length",
                                       "le_layers",
                                       "le_dropout_prob",
                                       "le_norm_type",
                                       "reduce_threshold",
                                       "min_remain_num",
                                       "max_remain_ratio",
                                       "anchor_positions",
                                       "use_ref_masks",
                                       "use_zero_masks"};

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
  const std::vector<std::string> known(kPruningFields.begin(), kPruningFields.end());
  for (const auto& [name, value] : pruning.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      const std::string near = nearest(name, known);
      fail("modules: unknown setting '", name, "'",
           near.empty() ? "" : concat("; did you mean '", near, "'?"));
    }
    base[name] = value;
  }
  return base;
}

TrainableModules::TrainableModules(nlohmann::json config, const BaseShape& base)
    : json_(std::move(config)), base_(base), config_(GlimpseConfig::from_json(json_, base)) {
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
