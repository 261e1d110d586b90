#pragma once

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "glimpse/engine/cache_folder.h"
#include "glimpse/engine/image_prefix.h"

namespace glimpse {

struct PrefixStoreOptions {
  std::shared_ptr<CacheFolder> folder;  ///< which bounds what is there
  std::string origin;  ///< what prefixes depend on and their keys do not hash: model files, dtype, program
};

/// Image prefixes as safetensors files of a folder, each named by its key, with a checksum that also takes
/// the folder's secret seed and the origin in: a damaged or foreign file is as if it were not there. Several
/// processes may use one folder. May be used from several threads.
class PrefixStore {
 public:
  /// Error: the folder cannot be written to.
  PrefixStore(PrefixStoreOptions options, at::Device device);
  /// Writes what is still to be written.
  ~PrefixStore();
  PrefixStore(const PrefixStore&) = delete;

  uint64_t seed() const { return seed_; }  ///< of the folder and the origin
  /// The prefix, which is then the most recently used, or null.
  std::shared_ptr<const ImagePrefix> load(const PrefixKey& key);
  /// Writes the prefix soon, on a thread of the store. Where the disk does not keep up, or fails, it is not
  /// kept; the first failure is told on standard error.
  void save(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix);

 private:
  struct Pending {
    PrefixKey key;
    std::shared_ptr<const ImagePrefix> prefix;
  };
  std::filesystem::path path_of(const PrefixKey& key) const;
  void run();
  void write(const Pending& pending);

  const PrefixStoreOptions options_;
  const at::Device device_;
  uint64_t seed_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Pending> pending_;  // the one that is written stays in front
  size_t pending_bytes_ = 0;
  bool ended_ = false, told_ = false;
  std::thread writer_;
};

}  // namespace glimpse
