#include "glimpse/engine/cache_folder.h"

#include <algorithm>
#include <chrono>
#include <string_view>

#include "glimpse/base/check.h"
#include "glimpse/engine/checked_file.h"
#include "glimpse/io/file_lock.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kWeights = "weights-", kKinds[] = {"", kWeights, "picture-", "row-"},
                           kEnding = ".safetensors", kTemporary = ".tmp-";

// A kind and 32 hexadecimal digits: nothing else is a cache's to remove.
bool is_of_cache(std::string_view name) {
  if (!name.ends_with(kEnding)) return false;
  name.remove_suffix(kEnding.size());
  if (name.size() < 32) return false;
  const std::string_view key = name.substr(name.size() - 32), kind = name.substr(0, name.size() - 32);
  return key.find_first_not_of("0123456789abcdef") == key.npos &&
         std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds);
}

// Null where somebody else has the file, or it cannot be locked.
std::unique_ptr<FileLock> locked(const fs::path& file, LockKind kind) {
  try {
    return std::make_unique<FileLock>(file, kind);
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

struct CacheFolder::Stored {
  fs::path path;
  Time used;
  uint64_t bytes;
  bool whole;  // else it is being written
};

CacheFolder::CacheFolder(fs::path dir, uint64_t max_bytes) : dir_(std::move(dir)), max_bytes_(max_bytes) {
  make_private_folder(dir_);
}

CacheFolder::~CacheFolder() {
  for (const auto& [file, lock] : held_) use(file);
}

void CacheFolder::use(const fs::path& file) {
  std::error_code ignored;
  fs::last_write_time(file, Time::clock::now(), ignored);
}

void CacheFolder::hold(const fs::path& file) {
  use(file);
  std::unique_ptr<FileLock> lock = locked(file, LockKind::shared);
  const std::lock_guard guard(mutex_);
  held_[file] = std::move(lock);
}

void CacheFolder::release(const fs::path& file) {
  const std::lock_guard guard(mutex_);
  held_.erase(file);
}

// What is a cache's; leftovers of processes that were killed are removed.
std::vector<CacheFolder::Stored> CacheFolder::stored() const {
  std::vector<Stored> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir_, error)) {
    const std::string name = entry.path().filename().string();
    const size_t temporary = name.find(kTemporary);
    const bool whole = temporary == name.npos;
    const std::string of = name.substr(0, temporary);
    if (!is_of_cache(of) && (whole || of != "seed")) continue;
    const Time used = entry.last_write_time(error);
    const uint64_t bytes = error ? 0 : entry.file_size(error);
    if (error) continue;  // another process removed it
    if (!whole && used < Time::clock::now() - std::chrono::hours(1))
      fs::remove(entry.path(), error);
    else
      out.push_back({entry.path(), used, bytes, whole});
  }
  return out;
}

bool CacheFolder::make_room(uint64_t bytes, Time until) {
  const std::lock_guard guard(mutex_);
  if (bytes > 0 && bytes <= unseen_) {
    unseen_ -= bytes;
    return true;
  }
  unseen_ = 0;
  if (bytes > max_bytes_) return false;
  std::vector<Stored> all = stored();
  uint64_t sum = 0;
  for (const Stored& file : all) sum += file.bytes;
  // One that fits in no case would take all others with it.
  std::sort(all.begin(), all.end(), [&](const Stored& a, const Stored& b) {
    return std::pair(a.bytes <= max_bytes_, a.used) < std::pair(b.bytes <= max_bytes_, b.used);
  });
  std::vector<std::pair<fs::path, std::unique_ptr<FileLock>>> leaving;
  for (const Stored& file : all) {
    if (sum + bytes <= max_bytes_) break;
    if (!file.whole || file.used >= until || held_.contains(file.path)) continue;
    std::unique_ptr<FileLock> lock;
    if (file.path.filename().string().starts_with(kWeights)) {
      lock = locked(file.path, LockKind::exclusive);
      if (!lock) continue;
    }
    leaving.emplace_back(file.path, std::move(lock));
    sum -= file.bytes;
  }
  const bool fits = sum + bytes <= max_bytes_;
  if (!fits && bytes > 0) return false;
  std::error_code error;
  for (const auto& [path, lock] : leaving) fs::remove(path, error);
  // Other processes write there, too, and nothing tells of it.
  if (fits) unseen_ = std::min(max_bytes_ - sum - bytes, max_bytes_ / 32);
  return fits;
}

std::shared_ptr<CacheFolder> open_cache_folder(const fs::path& cache_dir, double cache_disk_gb) {
  if (cache_dir.empty()) return nullptr;
  return std::make_shared<CacheFolder>(cache_dir, static_cast<uint64_t>(cache_disk_gb * 1024 * 1024 * 1024));
}

}  // namespace glimpse
