#include "glimpse/models/config.h"
#include "glimpse/models/llava.h"
#include "glimpse/models/qwen2_5_vl.h"
#include "glimpse/models/qwen3_vl.h"

namespace glimpse {

namespace {

using nlohmann::json;

struct Family {
  const char* model_type;
  const char* with_modules;  // the reference's name for it with pruning modules
  std::unique_ptr<Vlm> (*load)(const ModelSource&, const json&, const LoadOptions&);
  std::string (*canonical_name)(std::string_view name_in_file);
  Weights (*open_weights)(const ModelSource&, const json&);
  VisionShape (*vision_shape)(const json& config, const std::filesystem::path& dir);
  // Writes to a folder the settings of what the checkpoint keeps elsewhere; or null.
  void (*write_parts)(const ModelSource&, const std::filesystem::path& dir);
};

constexpr Family kFamilies[] = {
    {"qwen2_5_vl", "qwen2_5_vl_gp", Qwen25Vl::load, Qwen25Vl::canonical_name, Qwen25Vl::open_weights,
     Qwen25Vl::vision_shape, nullptr},
    {"qwen2_5_vl_gp", "qwen2_5_vl_gp", Qwen25Vl::load, Qwen25Vl::canonical_name, Qwen25Vl::open_weights,
     Qwen25Vl::vision_shape, nullptr},
    {"qwen3_vl", "qwen3_vl_gp", Qwen3Vl::load, Qwen3Vl::canonical_name, Qwen3Vl::open_weights,
     Qwen3Vl::vision_shape, nullptr},
    {"qwen3_vl_gp", "qwen3_vl_gp", Qwen3Vl::load, Qwen3Vl::canonical_name, Qwen3Vl::open_weights,
     Qwen3Vl::vision_shape, nullptr},
    {"llava", "llava_llama_gp", Llava::load, Llava::canonical_name, Llava::open_weights, Llava::vision_shape,
     Llava::write_parts},
    {"llava_llama", "llava_llama_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
    {"llava_llama_gp", "llava_llama_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
    {"llava_mistral", "llava_mistral_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
    {"llava_mistral_gp", "llava_mistral_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
    {"llava_next", "llava_next_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
    {"llava_next_gp", "llava_next_gp", Llava::load, Llava::canonical_name, Llava::open_weights,
     Llava::vision_shape, Llava::write_parts},
};

// Calls f(family) with that of `config`, which `file` names.
template <class Function>
auto of_family(const json& config, const std::string& file, Function f) {
  const std::string type = setting(config, "model_type", std::string(), file);
  std::string known;
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return f(family);
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  fail(file, ": model_type '", type, "' is not supported (known: ", known, ")");
}

// Modules come with the config that their base had; who makes it read longer texts edits the base's. So the
// settings of the rotary embedding are those of `own` where these scale it and the modules' do not, and
// layers slide as in `own`.
void settle_positions(json& config, const json& own, const json& overrides, const std::string& file) {
  constexpr const char* part = "text_config";
  if (own.contains(part) && overrides.contains(part))
    settle_positions(config[part], own[part], overrides[part], file);
  const json base = rope_settings(own, own, file), modules = rope_settings(overrides, overrides, file);
  const bool is_base = modules.empty() || (scales_rope(base) && !scales_rope(modules));
  const auto take = [&](const json& from, std::initializer_list<const char*> keys) {
    for (const char* key : keys) {
      config.erase(key);
      if (from.contains(key)) config[key] = from[key];
    }
  };
  take(is_base ? own : overrides, {"rope_scaling", "rope_parameters"});
  take(own, {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"});
  constexpr const char* most = "max_position_embeddings";
  if (is_base && scales_rope(base) && own.contains(most)) config[most] = own[most];
}

// Calls f(family, config) with the config of `source` after `overrides`.
template <class Function>
auto with_family(const ModelSource& source, const json& overrides, Function f) {
  const std::string file = source.where("config.json");
  const json own = source.config();
  json config = own;
  if (overrides.is_object()) config.update(overrides);
  config = without_nulls(std::move(config));
  // Which tensors there are is for the checkpoint to say.
  if (own.contains("tie_word_embeddings")) config["tie_word_embeddings"] = own["tie_word_embeddings"];
  if (overrides.is_object()) settle_positions(config, own, without_nulls(overrides), file);
  try {
    return of_family(config, file, [&](const Family& family) { return f(family, config); });
  } catch (const json::exception& error) {
    fail(file, ": ", error.what());
  }
}

}  // namespace

VisionOutput Vlm::encode(const std::vector<Patches>& patches, const VisionTaps& taps) const {
  const std::unique_ptr<Encoding> pass = encoding(patches, taps);
  while (pass->steps() > 0) pass->step();
  return pass->finish();
}

TextOutput Vlm::encode_text(const std::string&) const {
  fail("this model has no text encoder that shares a space with its vision encoder");
}

at::ScalarType checkpoint_dtype(const nlohmann::json& config) {
  const auto is_float32 = [&](const char* key) {
    return config.is_object() &&
           (member(config, key) == "float32" || member(text_config(config), key) == "float32");
  };
  return is_float32("torch_dtype") || is_float32("dtype") ? at::kFloat : at::kBFloat16;
}

std::unique_ptr<Vlm> load_vlm(const ModelSource& source, const LoadOptions& options) {
  return with_family(source, options.config_overrides, [&](const Family& family, const json& config) {
    return family.load(source, config, options);
  });
}

std::unique_ptr<Vlm> load_vlm(const std::filesystem::path& dir, const LoadOptions& options) {
  return load_vlm(*open_model_dir(dir), options);
}

Weights open_weights(const ModelSource& source) {
  return with_family(source, {}, [&](const Family& family, const json& config) {
    return family.open_weights(source, config);
  });
}

Weights open_weights(const std::filesystem::path& dir) {
  return open_weights(*open_model_dir(dir));
}

Weights::Rename canonical_names(const std::filesystem::path& dir) {
  return with_family(*open_model_dir(dir), {}, [](const Family& family, const json&) {
    return Weights::Rename(family.canonical_name);
  });
}

VisionShape vision_shape(const json& config, const std::filesystem::path& dir) {
  return of_family(config, (dir / "config.json").string(),
                   [&](const Family& family) { return family.vision_shape(config, dir); });
}

std::string model_type_with_modules(const std::string& model_type) {
  for (const Family& family : kFamilies)
    if (model_type == family.model_type) return family.with_modules;
  return model_type;
}

void write_parts(const ModelSource& source, const std::filesystem::path& dir) {
  with_family(source, {}, [&](const Family& family, const json&) {
    if (family.write_parts) family.write_parts(source, dir);
  });
}

}  // namespace glimpse
