#include "glimpse/io/model_dir.h"

#include "glimpse/base/check.h"
#include "glimpse/io/hub_cache.h"

namespace glimpse {
namespace fs = std::filesystem;

fs::path resolve_model_dir(const std::string& name_or_path) {
  std::error_code ignored;
  check(!name_or_path.empty(),
        "no model given: expected a directory or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct");
  if (fs::is_directory(name_or_path, ignored)) return name_or_path;
  check(!fs::exists(name_or_path, ignored), "model '", name_or_path, "' is a file; expected its directory");
  const auto id = HubId::parse(name_or_path);
  check(id.has_value(), "model '", name_or_path, "' not found: there is no such directory below ",
        fs::current_path(ignored).string(),
        ", and it is no hub id of the form org/name, org/name@revision or org/name:QUANTISATION");
  if (const auto snapshot = cached_snapshot(*id)) return *snapshot;
  const std::string commit = cached_commit(*id);
  fail("model '", name_or_path, "' not found. Looked for\n  the directory ",
       (fs::current_path(ignored) / name_or_path).string(), "\n  revision ", id->revision, " in the cache ",
       repo_folder(id->repo).string(),
       commit.empty() ? "" : concat(" (which points to the missing snapshot '", commit.substr(0, 100), "')"),
       "\nFetch it with `glimpse pull ", name_or_path, "` (or `huggingface-cli download ", id->repo,
       "`), set HF_HOME to the cache that has it, or give the path of its directory.");
}

}  // namespace glimpse
