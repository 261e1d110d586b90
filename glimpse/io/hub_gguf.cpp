#include "glimpse/io/hub_gguf.h"

#include <algorithm>
#include <map>
#include <regex>

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"

namespace glimpse {

namespace {

constexpr const char* kUsual = "Q4_K_M";
constexpr size_t kShown = 30;  // in an error

bool is_mmproj(const std::string& name) {
  return lowered(name).find("mmproj") != name.npos;
}

// "sub/net-Q8_0-00001-of-00002.gguf" is a part of "sub/net-Q8_0".
std::string without_part(const std::string& name) {
  static const std::regex end(R"((-\d{5}-of-\d{5})?\.gguf$)");
  return std::regex_replace(name, end, "");
}

// What stands last in a model's name, behind a '-' or '.': mostly the quantisation.
std::string last_word(const std::string& model) {
  return model.substr(model.find_last_of("-./") + 1);
}

bool is_of(const std::string& model, const std::string& quantisation) {
  const std::string name = lowered(model), wanted = lowered(quantisation);
  if (!name.ends_with(wanted)) return false;
  const size_t before = name.size() - wanted.size();
  return before == 0 || std::string("-._/").find(name[before - 1]) != std::string::npos;
}

// Encoders are small and sensitive: the 16-bit one, else the one with the most bits, else the first.
std::string choose_mmproj(const std::vector<std::string>& names) {
  std::vector<std::string> found;
  std::ranges::copy_if(names, std::back_inserter(found), is_mmproj);
  for (const char* kind : {"f16", "bf16", "f32", "q8_0"})
    for (const std::string& name : found)
      if (is_of(without_part(name), kind) || lowered(name).find(std::string("-") + kind + "-") != name.npos)
        return name;
  return found.empty() ? "" : found[0];
}

}  // namespace

std::optional<GgufChoice> choose_gguf(const std::vector<std::string>& names,
                                      const std::string& quantisation) {
  std::vector<std::string> files;
  std::ranges::copy_if(names, std::back_inserter(files),
                       [](const std::string& name) { return name.ends_with(".gguf"); });
  std::ranges::sort(files);
  std::map<std::string, std::vector<std::string>> models;  // by name without the part
  for (const std::string& file : files)
    if (!is_mmproj(file)) models[without_part(file)].push_back(file);
  if (models.empty()) return {};
  auto chosen = models.end();
  for (auto model = models.begin(); model != models.end(); ++model)
    // Of several the shortest name: others have a word more ("-UD-Q4_K_M").
    if (is_of(model->first, quantisation.empty() ? kUsual : quantisation) &&
        (chosen == models.end() || model->first.size() < chosen->first.size()))
      chosen = model;
  if (chosen == models.end()) {
    std::string known;
    size_t count = 0;
    for (const auto& [model, parts] : models)
      if (++count <= kShown) known += (known.empty() ? "" : ", ") + last_word(model);
    check(quantisation.empty(), "none of its .gguf files is of ", quantisation, "; there are: ", known,
          count > kShown ? ", ..." : "");
    chosen = models.begin();
  }
  return GgufChoice{chosen->second, choose_mmproj(files)};
}

}  // namespace glimpse
