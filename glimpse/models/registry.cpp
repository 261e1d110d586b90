#include "glimpse/models/qwen2_5_vl.h"

namespace glimpse {

namespace {

struct Family {
  const char* model_type;
  std::unique_ptr<Vlm> (*load)(const std::filesystem::path&, const nlohmann::json&, const LoadOptions&);
};

constexpr Family kFamilies[] = {
    {"qwen2_5_vl", Qwen25Vl::load},
    {"qwen2_5_vl_gp", Qwen25Vl::load},
};

}  // namespace

at::ScalarType checkpoint_dtype(const nlohmann::json& config) {
  const auto is_float32 = [&](const char* key) {
    return config.is_object() && member(config, key) == "float32";
  };
  return is_float32("torch_dtype") || is_float32("dtype") ? at::kFloat : at::kBFloat16;
}

std::unique_ptr<Vlm> load_vlm(const std::filesystem::path& dir, const LoadOptions& options) {
  nlohmann::json config = read_json(dir / "config.json");
  check(config.is_object(), (dir / "config.json").string(), ": expected a JSON object");
  if (options.config_overrides.is_object()) config.update(options.config_overrides);
  try {
    const auto type = config.value("model_type", std::string());
    std::string known;
    for (const Family& family : kFamilies) {
      if (type == family.model_type) return family.load(dir, config, options);
      known += (known.empty() ? "" : ", ") + std::string(family.model_type);
    }
    fail((dir / "config.json").string(), ": model_type '", type, "' is not supported (known: ", known, ")");
  } catch (const nlohmann::json::exception& error) {
    fail((dir / "config.json").string(), ": ", error.what());
  }
}

}  // namespace glimpse
