#include "glimpse/io/model_card.h"

#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/hub_cache.h"
#include "glimpse/io/yaml.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// What stands between two lines "---" at the begin of a card; null if nothing does.
json head_of(const fs::path& card) {
  constexpr size_t longest = 65536;
  std::ifstream in(card);
  std::string line, head;
  const auto next = [&] {
    if (!std::getline(in, line) || head.size() + line.size() > longest) return false;
    if (line.ends_with('\r')) line.pop_back();
    return true;
  };
  if (!next() || line != "---") return nullptr;
  while (next()) {
    if (line == "---") return parse_yaml(head, card.string());
    head += line + "\n";
  }
  return nullptr;
}

// The first hub id of a name or a list of names.
std::string first_id(const json& names) {
  for (const json& name : names.is_array() ? names : json::array({names}))
    if (name.is_string())
      if (const auto id = HubId::parse(name)) return id->text();
  return "";
}

}  // namespace

bool has_model_weights(const fs::path& dir) {
  std::error_code ignored;
  for (const char* file : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                           "pytorch_model.bin.index.json"})
    if (fs::exists(dir / file, ignored)) return true;
  return false;
}

std::string base_model_of(const fs::path& dir) {
  const auto named = [&](const char* file, const char* key) -> std::string {
    std::error_code ignored;
    if (!fs::is_regular_file(dir / file, ignored)) return "";
    const json settings = std::string_view(file) == "README.md" ? head_of(dir / file) : read_json(dir / file);
    return first_id(member(settings, key));
  };
  std::string base = named("adapter_config.json", "base_model_name_or_path");
  if (base.empty()) try {
      base = named("README.md", "base_model");
    } catch (const Error&) {
      // A card is for people; what it says wrongly spoils nothing.
    }
  return base.empty() ? named("config.json", "_name_or_path") : base;
}

}  // namespace glimpse
