#include "glimpse/models/llava.h"
#include "glimpse/models/qwen2_5_vl.h"

namespace glimpse {

namespace {

using nlohmann::json;

struct Family {
  const char* model_type;
  std::unique_ptr<Vlm> (*load)(const std::filesystem::path&, const json&, const LoadOptions&);
  std::string (*canonical_name)(std::string_view name_in_file);
  Weights (*open_weights)(const std::filesystem::path&, const json&);
};

constexpr Family kFamilies[] = {
    {"qwen2_5_vl", Qwen25Vl::load, Qwen25Vl::canonical_name, Qwen25Vl::open_weights},
    {"qwen2_5_vl_gp", Qwen25Vl::load, Qwen25Vl::canonical_name, Qwen25Vl::open_weights},
    {"llava", Llava::load, Llava::canonical_name, Llava::open_weights},
    {"llava_llama", Llava::load, Llava::canonical_name, Llava::open_weights},
    {"llava_llama_gp", Llava::load, Llava::canonical_name, Llava::open_weights},
};

// Calls f(family, config) with the config.json of `dir` after `overrides`.
template <class Function>
auto with_family(const std::filesystem::path& dir, const json& overrides, Function f) {
  const std::string file = (dir / "config.json").string();
  json config = read_json(dir / "config.json");
  check(config.is_object(), file, ": expected a JSON object");
  if (overrides.is_object()) config.update(overrides);
  try {
    const auto type = config.value("model_type", std::string());
    std::string known;
    for (const Family& family : kFamilies) {
      if (type == family.model_type) return f(family, config);
      known += (known.empty() ? "" : ", ") + std::string(family.model_type);
    }
    fail(file, ": model_type '", type, "' is not supported (known: ", known, ")");
  } catch (const json::exception& error) {
    fail(file, ": ", error.what());
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
  return with_family(dir, options.config_overrides, [&](const Family& family, const json& config) {
    return family.load(dir, config, options);
  });
}

Weights open_weights(const std::filesystem::path& dir) {
  return with_family(
      dir, {}, [&](const Family& family, const json& config) { return family.open_weights(dir, config); });
}

Weights::Rename canonical_names(const std::filesystem::path& dir) {
  return with_family(
      dir, {}, [](const Family& family, const json&) { return Weights::Rename(family.canonical_name); });
}

}  // namespace glimpse
