#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace glimpse {

class FileLock;

/// The folder of a cache, and a bound for all that programs keep in it: image prefixes, packed weights
/// ("weights-..."), a scout's lessons ("picture-...", "row-..."). When it is reached, the files that were
/// used least recently leave, whoever wrote them; never one that a program holds, or that is being written.
/// Several processes may use one folder. May be used from several threads.
class CacheFolder {
 public:
  using Time = std::filesystem::file_time_type;

  /// Makes the folder if it is not there, for its owner alone. Error: it cannot be made, or is no folder.
  CacheFolder(std::filesystem::path dir, uint64_t max_bytes);
  /// What it holds was in use until now.
  ~CacheFolder();
  CacheFolder(const CacheFolder&) = delete;

  const std::filesystem::path& dir() const { return dir_; }
  uint64_t max_bytes() const { return max_bytes_; }

  /// Notes that a file was used now, so that it leaves last.
  static void use(const std::filesystem::path& file);
  /// The same, and no process makes room of the file as long as this object is there. What cannot be locked
  /// (on a disk that is only read) stays in this process alone.
  void hold(const std::filesystem::path& file);
  void release(const std::filesystem::path& file);

  /// Makes room for a file of so many bytes (0: for what is there). False, and nothing more has left, where
  /// that would take what is held, or was last used at `until` or later.
  bool make_room(uint64_t bytes, Time until = Time::max());

 private:
  struct Stored;
  std::vector<Stored> stored() const;

  const std::filesystem::path dir_;
  const uint64_t max_bytes_;
  std::mutex mutex_;
  std::map<std::filesystem::path, std::unique_ptr<FileLock>> held_;
  uint64_t unseen_ = 0;  // bytes that may be written before the folder is looked at again
};

/// The folder `cache_dir` with a bound of `cache_disk_gb` GiB; null for "".
std::shared_ptr<CacheFolder> open_cache_folder(const std::filesystem::path& cache_dir, double cache_disk_gb);

}  // namespace glimpse
