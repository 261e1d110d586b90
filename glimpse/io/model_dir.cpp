#include "glimpse/io/model_dir.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <regex>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// The value of a variable as the hub's own client reads it: a leading ~ is the home folder, and $NAME and
/// ${NAME} stand for other variables, if these are set.
fs::path environment_path(const char* name) {
  std::string value = environment(name);
  if (value == "~" || value.starts_with("~/")) value.replace(0, 1, environment("HOME"));
  static const std::regex variable(R"(\$(\w+|\{[^}]*\}))");
  std::string out;
  auto rest = value.cbegin();
  for (std::smatch found; std::regex_search(rest, value.cend(), found, variable); rest = found[0].second) {
    std::string key = found[1];
    if (key.starts_with('{')) key = key.substr(1, key.size() - 2);
    const char* const other = std::getenv(key.c_str());
    out += std::string(rest, found[0].first) + (other ? other : found[0].str());
  }
  return out + std::string(rest, value.cend());
}

fs::path hub_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const fs::path cache = environment_path(name); !cache.empty()) return cache;
  if (const fs::path home = environment_path("HF_HOME"); !home.empty()) return home / "hub";
  fs::path cache = environment_path("XDG_CACHE_HOME");
  if (cache.empty()) cache = fs::path(environment("HOME")) / ".cache";
  return cache / "huggingface" / "hub";
}

/// True for text that names a single folder entry, so that joining it to a folder stays inside.
bool is_plain_name(const std::string& text) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  return !text.empty() && text != "." && text != ".." && std::all_of(text.begin(), text.end(), plain);
}

bool is_hub_id(const std::string& text) {
  const size_t slash = text.find('/');
  return slash != std::string::npos && is_plain_name(text.substr(0, slash)) &&
         is_plain_name(text.substr(slash + 1));
}

}  // namespace

fs::path resolve_model_dir(const std::string& name_or_path) {
  std::error_code ignored;
  check(!name_or_path.empty(),
        "no model given: expected a directory or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct");
  if (fs::is_directory(name_or_path, ignored)) return name_or_path;
  check(!fs::exists(name_or_path, ignored), "model '", name_or_path, "' is a file; expected its directory");
  check(is_hub_id(name_or_path), "model '", name_or_path, "' not found: there is no such directory below ",
        fs::current_path(ignored).string(), ", and it is no hub id of the form org/name");

  const size_t slash = name_or_path.find('/');
  const fs::path folder =
      hub_cache() / concat("models--", name_or_path.substr(0, slash), "--", name_or_path.substr(slash + 1));
  std::string revision;
  std::ifstream(folder / "refs" / "main") >> revision;
  if (is_plain_name(revision) && fs::is_directory(folder / "snapshots" / revision, ignored))
    return folder / "snapshots" / revision;
  fail("model '", name_or_path, "' not found. Looked for\n  the directory ",
       (fs::current_path(ignored) / name_or_path).string(), "\n  revision main in the cache ",
       folder.string(),
       revision.empty() ? ""
                        : concat(" (which points to the missing snapshot '", revision.substr(0, 100), "')"),
       "\nDownload it with `huggingface-cli download ", name_or_path,
       "`, set HF_HOME to the cache that has it, or give the path of its directory.");
}

}  // namespace glimpse
