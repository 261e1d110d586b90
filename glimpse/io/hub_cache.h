#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace glimpse {

/// A model on the hub, in one of its states: "org/name", or "org/name@revision". Of a repository of GGUF
/// files "org/name:Q4_K_M" is the model of that quantisation.
struct HubId {
  std::string repo, revision = "main";  ///< revision: a branch, a tag, a commit or the begin of one
  std::string quantisation = {};        ///< "": not named

  /// Nothing for text that is no such name. A name stays within one folder wherever it is joined to one.
  static std::optional<HubId> parse(const std::string& text);
  /// As it is written: without the revision if that is main.
  std::string text() const {
    return repo + (quantisation.empty() ? "" : ":" + quantisation) +
           (revision == "main" ? "" : "@" + revision);
  }
};

/// Whether this is the full name of a commit: 40 hexadecimal digits.
bool is_commit(const std::string& revision);
/// Whether text names a single entry of a folder: letters, digits, '-', '_' and '.', but not "." or "..".
bool is_plain_name(const std::string& text);

/// The local cache of the Hugging Face hub: $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub,
/// else ${XDG_CACHE_HOME:-~/.cache}/huggingface/hub.
std::filesystem::path hub_cache();
/// The folder that holds the hub's own client's settings, a token among them.
std::filesystem::path hub_home();
/// The value of a variable, or "".
std::string environment(const char* name);
/// The same as a path: a leading ~ is the home folder, and $NAME and ${NAME} stand for other variables, if
/// these are set.
std::filesystem::path environment_path(const char* name);
/// Whether a variable says yes: 1, true, yes or on.
bool environment_flag(const char* name);

/// Where a repository lies in the cache, whether or not it is there: blobs/ETAG, refs/REVISION with a commit
/// in it, and snapshots/COMMIT/FILE with links to the blobs.
std::filesystem::path repo_folder(const std::string& repo);
/// The locks of its blobs: ETAG.lock.
std::filesystem::path lock_folder(const std::string& repo);
/// The commit that its revision had when it was fetched, or "".
std::string cached_commit(const HubId& id);
/// The folder of that commit's files; nothing if there is none.
std::optional<std::filesystem::path> cached_snapshot(const HubId& id);
/// The first file that a snapshot whose fetching was cut short lacks, or "" if nothing is known to be
/// missing.
std::string missing_file(const std::filesystem::path& snapshot);
/// The same of a snapshot from which the model of this quantisation is wanted.
std::string missing_file(const std::filesystem::path& snapshot, const std::string& quantisation);
/// The files below a snapshot, by their names in the repository.
std::vector<std::string> snapshot_files(const std::filesystem::path& snapshot);

/// One state of a model in the cache.
struct CachedRevision {
  std::string commit;
  std::vector<std::string> refs;  ///< branches and tags that it was fetched by
  std::filesystem::path path;
  uint64_t bytes = 0;        ///< of its files
  std::string missing = {};  ///< see missing_file
};
/// A model in the cache.
struct CachedModel {
  std::string repo;
  std::vector<CachedRevision> revisions = {};
  uint64_t bytes = 0;       ///< on the disk; revisions share files
  uint64_t incomplete = 0;  ///< of these in files whose fetching can go on
};
/// All of them, by name.
std::vector<CachedModel> cached_models();
/// Removes a model, or, with `only_revision`, one state of it and what no other state uses. Returns how many
/// bytes that gave back. Error when it is not there, or when a process fetches it just now.
uint64_t remove_cached(const HubId& id, bool only_revision);

}  // namespace glimpse
