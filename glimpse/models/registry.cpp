#include "glimpse/models/qwen2_5_vl.h"

namespace glimpse {

namespace {

struct Family {
  const char* model_type;
  std::unique_ptr<Vlm> (*load)(const std::filesystem::path&, const nlohmann::json&, const LoadOptions&);
  std::string (*canonical_name)(std::string_view name_in_file);
};

constexpr Family kFamilies[] = {
    {"qwen2_5_vl", Qwen25Vl::load, Qwen25Vl::canonical_name},
    {"qwen2_5_vl_gp", Qwen25Vl::load, Qwen25Vl::canonical_name},
};

const Family& family_of(const nlohmann::json& config, const std::string& where) {
  const auto type = config.value("model_type", std::string());
  std::string known;
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  fail(where, ": model_type '", type, "' is not supported (known: ", known, ")");
}

/// Calls use(family, config) for the config.json in `dir`, after `overrides`.
template <class Use>
auto with_family(const std::filesystem::path& dir, const nlohmann::json& overrides, const Use& use) {
  const std::string where = (dir / "config.json").string();
  nlohmann::json config = read_json(where);
  check(config.is_object(), where, ": expected a JSON object");
  if (overrides.is_object()) config.update(overrides);
  try {
    return use(family_of(config, where), config);
  } catch (const nlohmann::json::exception& error) {
    fail(where, ": ", error.what());
  }
}

}  // namespace

at::ScalarType checkpoint_dtype(const nlohmann::json& config) {
  const auto is_float32 = [&](const char* key) {
    return config.is_object() && member(config, key) == "float32";
  };
  return is_float32("torch_dtype") || is_float32("dtype") ? at::kFloat : at::kBFloat16;
}

std::unique_ptr<Vlm> load_vlm(const std::filesystem::path& dir, const LoadOptions& options) {
  return with_family(dir, options.config_overrides, [&](const Family& family, const nlohmann::json& config) {
    return family.load(dir, config, options);
  });
}

Weights::Rename canonical_names(const std::filesystem::path& dir) {
  return with_family(dir, {}, [](const Family& family, const nlohmann::json&) {
    return Weights::Rename(family.canonical_name);
  });
}

}  // namespace glimpse
