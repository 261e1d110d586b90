#include "glimpse/io/hub_cache.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <regex>
#include <set>

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/file_lock.h"
#include "glimpse/io/hub_gguf.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

constexpr size_t kLongestName = 128, kLongestRevision = 256;

bool is_revision(const std::string& text) {
  if (text.empty() || text.size() > kLongestRevision || text.back() == '/') return false;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, '/');)
    if (!is_plain_name(part)) return false;
  return true;
}

uint64_t size_of(const fs::path& file) {
  std::error_code error;
  const uint64_t size = fs::file_size(file, error);
  return error ? 0 : size;
}

// Files below a folder that need not be there.
std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (fs::recursive_directory_iterator at(folder, ignored), end; at != end; at.increment(ignored))
    if (!at->is_directory(ignored) || at->is_symlink(ignored)) files.push_back(at->path());
  return files;
}

std::vector<fs::path> folders_in(const fs::path& folder) {
  std::vector<fs::path> folders;
  std::error_code ignored;
  for (fs::directory_iterator at(folder, ignored), end; at != end; at.increment(ignored))
    if (at->is_directory(ignored)) folders.push_back(at->path());
  std::sort(folders.begin(), folders.end());
  return folders;
}

std::string read_ref(const fs::path& file) {
  std::string commit;
  std::ifstream(file) >> commit;
  return commit;
}

// "org/name" of a folder "models--org--name"; "" for others.
std::string repo_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  constexpr std::string_view begin = "models--";
  const size_t middle = name.find("--", begin.size());
  if (!name.starts_with(begin) || middle == name.npos) return "";
  const auto id =
      HubId::parse(name.substr(begin.size(), middle - begin.size()) + "/" + name.substr(middle + 2));
  return id ? id->repo : "";
}

}  // namespace

bool is_plain_name(const std::string& text) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  return !text.empty() && text.size() <= kLongestName && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), plain);
}

bool is_commit(const std::string& revision) {
  return revision.size() == 40 && revision.find_first_not_of("0123456789abcdef") == revision.npos;
}

std::optional<HubId> HubId::parse(const std::string& text) {
  // A colon is part of neither names nor revisions.
  const size_t colon = text.find(':'),
               end = std::min(text.find('@', std::min(colon, text.size())), text.size());
  const std::string plain = colon == text.npos ? text : text.substr(0, colon) + text.substr(end);
  const size_t at = plain.find('@');
  HubId id{plain.substr(0, at)};
  if (at != plain.npos) id.revision = plain.substr(at + 1);
  if (colon != text.npos) {
    id.quantisation = text.substr(colon + 1, end - colon - 1);
    if (!is_plain_name(id.quantisation)) return {};
  }
  const size_t slash = id.repo.find('/');
  if (slash == id.repo.npos || !is_plain_name(id.repo.substr(0, slash)) ||
      !is_plain_name(id.repo.substr(slash + 1)) || !is_revision(id.revision))
    return {};
  return id;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool environment_flag(const char* name) {
  const std::string value = lowered(environment(name));
  return value == "1" || value == "true" || value == "yes" || value == "on";
}

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

fs::path hub_home() {
  if (fs::path home = environment_path("HF_HOME"); !home.empty()) return home;
  fs::path cache = environment_path("XDG_CACHE_HOME");
  if (cache.empty()) cache = fs::path(environment("HOME")) / ".cache";
  return cache / "huggingface";
}

fs::path hub_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (fs::path cache = environment_path(name); !cache.empty()) return cache;
  return hub_home() / "hub";
}

namespace {

std::string folder_name(const std::string& repo) {
  const size_t slash = repo.find('/');
  return concat("models--", repo.substr(0, slash), "--", repo.substr(slash + 1));
}

}  // namespace

fs::path repo_folder(const std::string& repo) {
  return hub_cache() / folder_name(repo);
}

fs::path lock_folder(const std::string& repo) {
  return hub_cache() / ".locks" / folder_name(repo);
}

std::string cached_commit(const HubId& id) {
  const fs::path folder = repo_folder(id.repo);
  if (is_commit(id.revision)) return id.revision;
  std::error_code ignored;
  if (const fs::path ref = folder / "refs" / id.revision; fs::is_regular_file(ref, ignored))
    return read_ref(ref);
  // Of a commit its begin may be given.
  for (const fs::path& snapshot : folders_in(folder / "snapshots"))
    if (id.revision.size() >= 7 && snapshot.filename().string().starts_with(id.revision))
      return snapshot.filename();
  return "";
}

std::optional<fs::path> cached_snapshot(const HubId& id) {
  const std::string commit = cached_commit(id);
  const fs::path snapshot = repo_folder(id.repo) / "snapshots" / commit;
  std::error_code ignored;
  if (!is_plain_name(commit) || !fs::is_directory(snapshot, ignored)) return {};
  return snapshot;
}

std::string missing_file(const fs::path& snapshot) {
  std::error_code ignored;
  const auto there = [&](const std::string& name) { return fs::is_regular_file(snapshot / name, ignored); };
  for (fs::directory_iterator at(snapshot, ignored), end; at != end; at.increment(ignored)) {
    const std::string name = at->path().filename();
    if (!there(name) && at->is_symlink(ignored)) return name;  // its blob is gone
  }
  const auto has_weights = [&, files = files_below(snapshot)](const char* ending) {
    return std::any_of(files.begin(), files.end(),
                       [&](const fs::path& file) { return file.extension() == ending; });
  };
  if (has_weights(".gguf")) return "";
  if (!there("config.json") && !there("adapter_config.json")) return "config.json";
  if (!there("model.safetensors"))
    for (const char* index : {"model.safetensors.index.json", "pytorch_model.bin.index.json"}) {
      if (!there(index)) continue;
      nlohmann::json parsed;
      try {
        parsed = read_json(snapshot / index);
      } catch (const Error&) {
        return "";  // whoever loads it says what is wrong with it
      }
      for (const auto& [tensor, file] : member(parsed, "weight_map").items())
        if (file.is_string() && !there(file)) return file;
      return "";
    }
  return has_weights(".safetensors") || has_weights(".bin") || has_weights(".pt") ? "" : "model.safetensors";
}

std::vector<std::string> snapshot_files(const fs::path& snapshot) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const fs::path& file : files_below(snapshot))
    if (fs::is_regular_file(file, ignored)) names.push_back(file.lexically_relative(snapshot).string());
  return names;
}

std::string missing_file(const fs::path& snapshot, const std::string& quantisation) {
  const std::string missing = missing_file(snapshot);
  if (quantisation.empty() || !missing.empty()) return missing;
  try {
    const auto chosen = choose_gguf(snapshot_files(snapshot), quantisation);
    return chosen ? "" : "*.gguf";
  } catch (const Error&) {
    return "*" + quantisation + ".gguf";
  }
}

std::vector<CachedModel> cached_models() {
  std::vector<CachedModel> models;
  for (const fs::path& folder : folders_in(hub_cache())) {
    CachedModel model{repo_of(folder), {}};
    if (model.repo.empty()) continue;
    for (const fs::path& blob : files_below(folder / "blobs")) {
      model.bytes += size_of(blob);
      if (blob.extension() == ".incomplete") model.incomplete += size_of(blob);
    }
    for (const fs::path& snapshot : folders_in(folder / "snapshots")) {
      CachedRevision revision{snapshot.filename(), {}, snapshot};
      for (const fs::path& file : files_below(snapshot)) {
        revision.bytes += size_of(file);
        std::error_code ignored;
        if (!fs::is_symlink(file, ignored)) model.bytes += size_of(file);  // where links cannot be made
      }
      for (const fs::path& ref : files_below(folder / "refs"))
        if (read_ref(ref) == revision.commit)
          revision.refs.push_back(ref.lexically_relative(folder / "refs").string());
      std::sort(revision.refs.begin(), revision.refs.end());
      revision.missing = missing_file(snapshot);
      model.revisions.push_back(std::move(revision));
    }
    models.push_back(std::move(model));
  }
  return models;
}

uint64_t remove_cached(const HubId& id, bool only_revision) {
  const fs::path folder = repo_folder(id.repo), snapshots = folder / "snapshots", blobs = folder / "blobs";
  std::error_code error;
  check(fs::is_directory(folder, error), "model '", id.repo, "' is not in the cache ", hub_cache().string(),
        "; `glimpse models` lists what is");
  std::vector<std::unique_ptr<FileLock>> locks;
  for (const fs::path& lock : files_below(lock_folder(id.repo)))
    locks.push_back(std::make_unique<FileLock>(lock, LockKind::exclusive));
  const auto bytes = [&] {
    uint64_t all = 0;
    for (const fs::path& file : files_below(folder))
      if (!fs::is_symlink(file, error)) all += size_of(file);
    return all;
  };
  const uint64_t before = bytes();
  if (only_revision) {
    const auto snapshot = cached_snapshot(id);
    check(snapshot.has_value(), "model '", id.repo, "' is not in the cache in the revision ", id.revision);
    for (const fs::path& ref : files_below(folder / "refs"))
      if (read_ref(ref) == snapshot->filename()) fs::remove(ref, error);
    fs::remove_all(*snapshot, error);
    check(!error, snapshot->string(), ": cannot be removed: ", error.message());
    std::set<fs::path> used;
    for (const fs::path& file : files_below(snapshots)) used.insert(fs::weakly_canonical(file, error));
    for (const fs::path& blob : files_below(blobs))
      if (!used.contains(fs::weakly_canonical(blob, error))) fs::remove(blob, error);
  }
  if (!only_revision || folders_in(snapshots).empty()) {
    fs::remove_all(folder, error);
    check(!error, folder.string(), ": cannot be removed: ", error.message());
    fs::remove_all(lock_folder(id.repo), error);
  }
  return before - bytes();
}

}  // namespace glimpse
