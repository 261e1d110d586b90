#include "glimpse/models/gguf_parts.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "glimpse/base/atomic_file.h"
#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

namespace {

// What may stand behind "ARCHITECTURE.rope.scaling.", the name in config.json of what is taken over as it is,
// and whether it belongs to yarn alone.
struct ScalingKey {
  const char *name, *to;
  bool yarn;
};
constexpr ScalingKey kScaling[] = {{"type", nullptr, false},
                                   {"factor", nullptr, false},
                                   {"attn_factor", nullptr, false},
                                   {"original_context_length", "original_max_position_embeddings", false},
                                   {"finetuned", nullptr, false},
                                   {"yarn_ext_factor", nullptr, true},
                                   {"yarn_attn_factor", "attention_factor", true},
                                   {"yarn_beta_fast", "beta_fast", true},
                                   {"yarn_beta_slow", "beta_slow", true}};

}  // namespace

std::string text_of(const Gguf& gguf, const char* key) {
  const json& value = member(gguf.metadata(), key);
  return value.is_string() ? value.get<std::string>() : "";
}

int64_t block_count(const Gguf& gguf, const char* key) {
  const auto count = need<int64_t>(gguf.metadata(), key, gguf.file());
  check(count > 0 && count <= 1024, gguf.file(), ": ", key, " is ", count);
  return count;
}

json rope_scaling_of(const Gguf& gguf, const std::string& architecture) {
  const json& meta = gguf.metadata();
  const std::string prefix = architecture + ".rope.scaling.";
  const auto number = [&](const std::string& name, double fallback) {
    const auto value = setting<double>(meta, name.c_str(), fallback, gguf.file());
    check(std::isfinite(value), gguf.file(), ": ", name, " is ", value);
    return value;
  };
  const auto only_one = [&](const char* key) {
    const std::string name = prefix + key;
    const double value = number(name, 1);
    check(value == 1, gguf.file(), ": ", name, " is ", value, ", which is not supported (known: 1)");
  };
  for (const char* name : {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
    check(!gguf.entries().contains(name), gguf.file(), ": tensor '", name,
          "' scales the rotary embedding pair by pair, which is not supported (known: linear and yarn)");
  const json& type = member(meta, (prefix + "type").c_str());
  check(type.is_null() || type == "none" || type == "linear" || type == "yarn", gguf.file(), ": ", prefix,
        "type ", json_text(type).substr(0, 100), " is not supported (known: none, linear, yarn)");
  only_one("attn_factor");
  if (type == "none") return json::object();

  const bool yarn = type == "yarn";
  std::string by = prefix + "factor";
  if (!yarn && !meta.contains(by)) by = architecture + ".rope.scale_linear";
  const double factor = number(by, 0);
  if (!yarn && (factor == 0 || factor == 1)) return json::object();
  check(factor >= 1, gguf.file(), ": ", by, " is ", factor, ", expected 1 or more");
  if (yarn) only_one("yarn_ext_factor");
  json rope = {{"type", yarn ? "yarn" : "linear"}, {"factor", factor}};
  for (const auto& [name, value] : meta.items()) {
    if (!name.starts_with(prefix)) continue;
    const auto known = std::find_if(std::begin(kScaling), std::end(kScaling), [&](const ScalingKey& key) {
      return name.substr(prefix.size()) == key.name && (yarn || !key.yarn);
    });
    check(known != std::end(kScaling), gguf.file(), ": ", name, " ", json_text(value).substr(0, 100),
          " is not supported with ", prefix, "type ", rope["type"].get<std::string>());
    if (known->to) rope[known->to] = value;
  }
  return rope;
}

void check_projector(const Gguf& vision, const std::string& known) {
  const std::string other = text_of(vision, "general.architecture");
  check(other == "clip", vision.file(), " holds no vision encoder: its architecture is '", other,
        "', expected 'clip'");
  const std::string projector = text_of(vision, "clip.projector_type"),
                    type = projector.empty() ? text_of(vision, "clip.vision.projector_type") : projector;
  check(type == known, vision.file(), ": projector type '", type, "' is not supported (known: ", known, ")");
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  AtomicFile file(path);
  file.stream() << text << '\n';
  file.commit();
}

}  // namespace glimpse
