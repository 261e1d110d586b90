#include "glimpse/train/lora.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "glimpse/io/adapter.h"
#include "glimpse/io/layout.h"

namespace glimpse {

namespace {

int64_t linears_of_layer(const Decoder& decoder) {
  int64_t all = 0;
  decoder.visit_linears([&](const std::string&, const Linear&) { ++all; });
  return all / decoder.config().layers;
}

}  // namespace

Fields LoraOptions::fields() {
  Fields f;
  f.add("lora_r", r, "rank of the LoRA branches", {1, 4096});
  f.add("lora_alpha", alpha, "the branches are scaled by this / rank", {0, 1e6});
  f.add("lora_dropout", dropout, "probability of dropout on a branch's input", {0, 0.99});
  f.add("lora_targets", targets, "linear layers of the language model that get a branch");
  f.add("lora_first_layer", first_layer,
        "layers before this one get none; behind the cut the adapter changes nothing of what stays",
        {0, 1e4});
  return f;
}

LoraAdapter LoraAdapter::fresh(Decoder& decoder, const LoraOptions& options, uint64_t seed) {
  LoraAdapter adapter;
  adapter.dropout_ = options.dropout;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  std::vector<bool> matched(options.targets.size());
  std::string last;
  const int64_t layers = decoder.config().layers;
  check(options.first_layer < layers, "lora_first_layer: expected less than ", layers,
        ", the language model's layers, got ", options.first_layer);
  int64_t left = options.first_layer * linears_of_layer(decoder);  // linear layers to leave out
  decoder.visit_linears([&](const std::string& module, Linear& layer) {
    last = module;
    if (--left >= 0) return;
    bool wanted = false;
    for (size_t i = 0; i < options.targets.size(); ++i)
      if (("." + module).ends_with("." + options.targets[i])) wanted = matched[i] = true;
    if (!wanted) return;
    const int64_t out = layer.weight.size(0), in = layer.weight.size(1);
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    const at::Tensor a = at::empty({options.r, in}).uniform_(-bound, bound, generator);
    const at::Device device = layer.weight.device();
    adapter.add(module, a.to(device), at::zeros({out, options.r}, device),
                options.alpha / static_cast<double>(options.r));
  });
  check(!options.targets.empty(), "lora_targets: expected at least one linear layer");
  for (size_t i = 0; i < matched.size(); ++i)
    check(matched[i], "lora_targets: no linear layer of the language model is called '", options.targets[i],
          "' from layer ", options.first_layer, " on (the last one is ", last, ")");
  return adapter;
}

LoraAdapter LoraAdapter::load(Decoder& decoder, const std::filesystem::path& dir, double dropout,
                              const Weights::Rename& rename) {
  const std::string who = "adapter " + dir.string();
  const Adapter read = load_adapter(dir);
  check(read.replacements.empty(), who, " replaces whole tensors, such as '",
        read.replacements.empty() ? "" : read.replacements.begin()->first,
        "', and cannot be trained further; merge it into the model first");
  std::map<std::string, const LoraDelta*> deltas;
  constexpr std::string_view kWeight = ".weight";
  for (const auto& [module, delta] : read.deltas) {
    // Renaming is for tensors.
    std::string name = rename ? rename(module + std::string(kWeight)) : module + std::string(kWeight);
    name.resize(name.size() - kWeight.size());
    check(deltas.emplace(name, &delta).second, who, " changes '", name, "' twice");
  }
  LoraAdapter adapter;
  adapter.dropout_ = dropout;
  decoder.visit_linears([&](const std::string& module, Linear& layer) {
    const auto found = deltas.find(module);
    if (found == deltas.end()) return;
    const LoraDelta& delta = *found->second;
    check(!delta.transposed && layer.weight.sizes() == delta.weight_shape(), who, " changes '", module,
          "' of shape ", shape_text(delta.weight_shape()), delta.transposed ? " (transposed)" : "",
          ", but it is of shape ", shape_text(layer.weight.sizes()));
    const auto own = [&](const at::Tensor& t) {
      return t.to(layer.weight.device(), at::kFloat, false, true);
    };
    adapter.add(module, own(delta.a), own(delta.b), delta.scale);
    deltas.erase(found);
  });
  check(deltas.empty(), who, " changes '", deltas.empty() ? "" : deltas.begin()->first,
        "', which is no linear layer of the language model");
  return adapter;
}

void LoraAdapter::add(const std::string& module, const at::Tensor& a, const at::Tensor& b, double scale) {
  branches_[module] = std::make_shared<Lora>(
      Lora{a.contiguous().requires_grad_(), b.contiguous().requires_grad_(), scale, dropout_});
}

void LoraAdapter::attach(Decoder& decoder) const {
  decoder.visit_linears([&](const std::string& module, Linear& layer) {
    const auto branch = branches_.find(module);
    layer.lora = branch == branches_.end() ? nullptr : branch->second;
  });
}

void LoraAdapter::detach(Decoder& decoder) {
  decoder.visit_linears([](const std::string&, Linear& layer) { layer.lora = nullptr; });
}

int64_t LoraAdapter::untouched_layers(const Decoder& decoder) const {
  int64_t before = 0;  // linear layers
  bool touched = false;
  decoder.visit_linears([&](const std::string& module, const Linear&) {
    touched = touched || branches_.contains(module);
    if (!touched) ++before;
  });
  return before / linears_of_layer(decoder);
}

std::map<std::string, at::Tensor> LoraAdapter::parameters() const {
  std::map<std::string, at::Tensor> leaves;
  for (const auto& [module, branch] : branches_) {
    leaves[module + ".lora_A.weight"] = branch->a;
    leaves[module + ".lora_B.weight"] = branch->b;
  }
  return leaves;
}

void LoraAdapter::save(const std::filesystem::path& dir, const std::string& base_model) const {
  std::map<std::string, LoraDelta> deltas;
  for (const auto& [module, branch] : branches_)
    deltas[module] = {branch->a, branch->b, branch->scale, false};
  save_adapter(dir, deltas, {dropout_, base_model});
}

}  // namespace glimpse
