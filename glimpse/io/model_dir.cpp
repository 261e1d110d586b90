#include "glimpse/io/model_dir.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// The value of a variable with a leading ~ replaced, as the hub's own client does.
fs::path environment_path(const char* name) {
  const std::string value = environment(name);
  return value.starts_with("~/") ? fs::path(environment("HOME")) / value.substr(2) : fs::path(value);
}

fs::path hub_cache() {
  if (const fs::path cache = environment_path("HF_HUB_CACHE"); !cache.empty()) return cache;
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
