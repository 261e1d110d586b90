// GCC 12 sees uninitialised members inside std::regex when the sanitizers are on.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "glimpse/io/adapter.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/tensor_file.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

/// rank_pattern or alpha_pattern: values for the modules whose path, from some dot on, matches a regular
/// expression.
class Pattern {
 public:
  Pattern(const nlohmann::json& config, const std::string& key, const std::string& file)
      : what_(file + ": " + key) {
    if (!config.contains(key) || config[key].is_null()) return;
    check(config[key].is_object(), what_, " is not an object");
    for (const auto& [text, value] : config[key].items()) {
      check(value.is_number(), what_, ": the value of '", text, "' is not a number");
      if (text.find_first_of("\\^$*+?()[]{}|") == std::string::npos)
        names_.emplace(text, value.get<double>());
      else
        expressions_.emplace_back(compile(text), value.get<double>());
    }
    check(expressions_.size() <= 64, what_, " has ", expressions_.size(),
          " regular expressions; at most 64 are read");
  }

  /// The value for `module`, or `otherwise`. PEFT takes the first match in file order, so two matches with
  /// different values are an error here rather than a guess.
  double value(const std::string& module, double otherwise) const {
    std::optional<double> found;
    const auto add = [&](double v) {
      check(!found || *found == v, what_, ": module '", module,
            "' matches two patterns with different values");
      found = v;
    };
    size_t begin = 0;
    do {
      if (const auto name = names_.find(module.substr(begin)); name != names_.end()) add(name->second);
      begin = module.find('.', begin) + 1;
    } while (begin != 0);
    for (const auto& [expression, v] : expressions_)
      if (std::regex_match(module, expression)) add(v);
    return found.value_or(otherwise);
  }

 private:
  // Counted repeats make a short expression huge, and backtracking is exponential: neither is let in.
  std::regex compile(const std::string& text) const {
    check(text.size() <= 256 && text.find('{') == std::string::npos, what_, ": the expression '",
          text.substr(0, 300), "' is not understood (longer than 256 characters or with braces)");
    try {
      return std::regex("(.*\\.)?(" + text + ")",
                        std::regex::ECMAScript | std::regex_constants::__polynomial);
    } catch (const std::regex_error& error) {
      fail(what_, ": the expression '", text, "' is not understood: ", error.what());
    }
  }

  std::string what_;
  std::map<std::string, double> names_;
  std::vector<std::pair<std::regex, double>> expressions_;
};

/// What adapter_config.json says about the sizes of the deltas.
struct Config {
  explicit Config(const fs::path& path) : file(path.string()), json(read_json(path)) {
    check(json.is_object(), file, " is not a JSON object");
    const auto type = json.find("peft_type");
    check(type != json.end() && *type == "LORA", file, ": peft_type is ",
          type == json.end() ? "missing" : type->dump(), "; only \"LORA\" is supported");
    for (const char* key : {"use_dora", "use_qalora", "layer_replication", "alora_invocation_tokens",
                            "trainable_token_indices", "target_parameters", "arrow_config", "kasa_config",
                            "monteclora_config", "lora_ga_config", "use_bdlora"})
      check(is_off(key), file, ": ", key, " is set, which is not supported");
    // These start from a base whose weights they change, so the sum with the original base would be wrong.
    const auto init = json.find("init_lora_weights");
    if (init != json.end() && init->is_string())
      for (const char* method : {"pissa", "olora", "corda", "loftq", "lora_ga"})
        check(!init->get<std::string>().starts_with(method), file, ": init_lora_weights ", *init,
              " changes the base weights, which is not supported; convert the adapter to a plain LoRA first");
    rank = number("r", 8);
    alpha = number("lora_alpha", 8);
    check(rank >= 1, file, ": r is ", rank, "; expected at least 1");
    rank_stabilised = !is_off("use_rslora");
    transposed = !is_off("fan_in_fan_out");
  }

  bool is_off(const char* key) const {
    const auto value = json.find(key);
    return value == json.end() || value->is_null() || *value == false ||
           (value->is_structured() && value->empty());
  }

  double number(const char* key, double otherwise) const {
    const auto value = json.find(key);
    if (value == json.end()) return otherwise;
    check(value->is_number(), file, ": ", key, " is ", value->dump().substr(0, 100), "; expected a number");
    return value->get<double>();
  }

  std::string file;
  nlohmann::json json;
  double rank = 0, alpha = 0;
  bool rank_stabilised = false, transposed = false;
};

/// Removes the component of a dotted name that is `part`, wherever it stands between two others.
void remove_component(std::string& name, const std::string& part) {
  for (size_t at; (at = name.find("." + part + ".")) != std::string::npos;) name.erase(at, part.size() + 1);
}

bool remove_suffix(std::string& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.resize(text.size() - suffix.size());
  return true;
}

fs::path tensor_file(const fs::path& dir) {
  const fs::path safe = dir / "adapter_model.safetensors", old = dir / "adapter_model.bin";
  return fs::exists(old) && !fs::exists(safe) ? old : safe;
}

}  // namespace

std::vector<int64_t> LoraDelta::weight_shape() const {
  const int64_t in = a.size(1), out = b.size(0);
  return transposed ? std::vector{in, out} : std::vector{out, in};
}

at::Tensor LoraDelta::apply(const at::Tensor& weight) const {
  const at::Tensor up = b.to(weight.device(), at::kFloat), down = a.to(weight.device(), at::kFloat);
  check(!base.defined() || base.sizes() == weight.sizes(), "an adapter's base_layer.weight has shape ",
        shape_text(base.sizes()), "; expected ", shape_text(weight.sizes()));
  const at::Tensor start = base.defined() ? base.to(weight.options()) : weight;
  // In place, as the weight may be the largest thing in memory.
  at::Tensor sum = start.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  transposed ? sum.addmm_(down.t(), up.t(), 1, scale) : sum.addmm_(up, down, 1, scale);
  return sum.to(weight.scalar_type()).contiguous();
}

Adapter load_adapter(const fs::path& dir) {
  const Config config(dir / "adapter_config.json");
  const Pattern ranks(config.json, "rank_pattern", config.file),
      alphas(config.json, "alpha_pattern", config.file);
  const std::string file = tensor_file(dir).string();
  constexpr std::string_view kPrefix = "base_model.model.";

  Adapter adapter;
  std::map<std::string, at::Tensor> bases;
  for (const auto& [key, tensor] : load_tensors(file)) {
    check(key.starts_with(kPrefix), file, ": tensor '", key, "' does not start with ", kPrefix);
    check(at::isFloatingType(tensor.scalar_type()), file, ": tensor '", key, "' has dtype ",
          tensor.scalar_type());
    std::string name = key.substr(kPrefix.size());
    check(config.is_off("ensure_weight_tying") ||
              (name.find("embed_tokens") == name.npos && name.find("lm_head") == name.npos),
          config.file, ": ensure_weight_tying with a change of '", name, "' is not supported");
    const bool below = name.ends_with(".base_layer.weight");
    for (const char* wrapper : {"default", "base_layer", "modules_to_save"}) remove_component(name, wrapper);
    if (remove_suffix(name, ".lora_A.weight")) {
      check(!adapter.deltas[name].a.defined(), file, ": two lora_A for '", name, "'");
      adapter.deltas[name].a = tensor;
    } else if (remove_suffix(name, ".lora_B.weight")) {
      check(!adapter.deltas[name].b.defined(), file, ": two lora_B for '", name, "'");
      adapter.deltas[name].b = tensor;
    } else if (below) {
      check(bases.emplace(name.substr(0, name.size() - 7), tensor).second, file, ": two tensors for '", name,
            "'");
    } else {
      check(name.find("lora_") == std::string::npos && name.find("token_adapter") == std::string::npos, file,
            ": tensor '", key, "' is of a kind that is not supported");
      check(adapter.replacements.emplace(name, tensor).second, file, ": two tensors for '", name, "'");
    }
  }
  for (const auto& [module, tensor] : bases)
    if (const auto delta = adapter.deltas.find(module); delta != adapter.deltas.end())
      delta->second.base = tensor;
    else
      check(adapter.replacements.emplace(module + ".weight", tensor).second, file, ": two tensors for '",
            module, ".weight'");
  check(!adapter.deltas.empty() || !adapter.replacements.empty(), file, " holds no tensors");
  for (auto& [module, delta] : adapter.deltas) {
    check(delta.a.defined() && delta.b.defined(), file, ": module '", module,
          "' has only one of lora_A and lora_B");
    const double rank = ranks.value(module, config.rank);
    check(delta.a.dim() == 2 && delta.b.dim() == 2 && delta.a.size(0) == rank && delta.b.size(1) == rank,
          file, ": module '", module, "' has lora_A ", shape_text(delta.a.sizes()), " and lora_B ",
          shape_text(delta.b.sizes()), "; expected [", rank, ", in] and [out, ", rank, "] as ", config.file,
          " says");
    delta.scale = alphas.value(module, config.alpha) / (config.rank_stabilised ? std::sqrt(rank) : rank);
    delta.transposed = config.transposed;
  }
  return adapter;
}

}  // namespace glimpse
