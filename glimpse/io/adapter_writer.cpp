#include <cmath>
#include <nlohmann/json.hpp>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/io/adapter.h"
#include "glimpse/io/safetensors.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

/// The lora_alpha that gives `delta` its scale: a whole number where it was one.
nlohmann::json alpha_of(const LoraDelta& delta) {
  const double alpha = delta.scale * static_cast<double>(delta.a.size(0));
  const double whole = std::round(alpha);
  if (std::abs(alpha - whole) < 1e-9 * std::max(1.0, std::abs(alpha))) return static_cast<int64_t>(whole);
  return alpha;
}

/// The first module's rank and alpha are the rule, those of the others that differ the exceptions.
nlohmann::json config_of(const std::map<std::string, LoraDelta>& deltas, const AdapterNotes& notes) {
  const LoraDelta& first = deltas.begin()->second;
  const int64_t rank = first.a.size(0);
  const nlohmann::json alpha = alpha_of(first);
  nlohmann::json modules = nlohmann::json::array(), ranks = nlohmann::json::object(), alphas = ranks;
  for (const auto& [module, delta] : deltas) {
    // Whole names: "gate_proj" alone would match the vision encoder's layers too.
    modules.push_back(module);
    if (delta.a.size(0) != rank) ranks[module] = delta.a.size(0);
    if (alpha_of(delta) != alpha) alphas[module] = alpha_of(delta);
  }
  return {{"peft_type", "LORA"},
          {"task_type", nullptr},
          {"base_model_name_or_path",
           notes.base_model.empty() ? nlohmann::json(nullptr) : nlohmann::json(notes.base_model)},
          {"r", rank},
          {"lora_alpha", alpha},
          {"lora_dropout", notes.dropout},
          {"target_modules", modules},
          {"rank_pattern", ranks},
          {"alpha_pattern", alphas},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"inference_mode", true},
          {"modules_to_save", nullptr},
          {"use_rslora", false}};
}

}  // namespace

void save_adapter(const fs::path& dir, const std::map<std::string, LoraDelta>& deltas,
                  const AdapterNotes& notes) {
  invariant(!deltas.empty(), "an adapter without modules");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [module, delta] : deltas) {
    invariant(!delta.transposed, "a transposed delta");
    tensors["base_model.model." + module + ".lora_A.weight"] = delta.a;
    tensors["base_model.model." + module + ".lora_B.weight"] = delta.b;
  }
  std::error_code error;
  fs::create_directories(dir, error);
  check(!error, "cannot write ", dir.string(), ": ", error.message());
  // New matrices must never stand beside an older config.
  fs::remove(dir / "adapter_config.json", error);
  save_safetensors(dir / "adapter_model.safetensors", tensors, {{"format", "pt"}});
  AtomicFile config(dir / "adapter_config.json");
  config.stream() << config_of(deltas, notes).dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                  << "\n";
  config.commit();
}

}  // namespace glimpse
