#include "glimpse/base/atomic_dir.h"

#include <unistd.h>

#include <atomic>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

/// A name beside `path` that nothing has.
fs::path name_beside(const fs::path& path) {
  static std::atomic<unsigned> counter = 0;
  std::error_code ignored;
  while (true) {
    const fs::path name = concat(path.string(), ".tmp-", ::getpid(), "-", counter++);
    if (!fs::exists(fs::symlink_status(name, ignored))) return name;
  }
}

}  // namespace

AtomicDirectory::AtomicDirectory(const fs::path& path, bool replace)
    : path_(path.has_filename() ? path : path.parent_path()) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path_, error);
  check(!fs::exists(status) || (replace && fs::is_directory(status)), "cannot write ", path_.string(),
        ": it exists", replace ? " and is no directory" : "");
  const fs::path name = name_beside(path_);
  check(fs::create_directory(name, error), "cannot write ", path_.string(), ": ", error.message());
  temporary_ = name;
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  invariant(!temporary_.empty(), "AtomicDirectory committed twice");
  std::error_code error, ignored;
  fs::path old;
  if (fs::exists(path_)) {
    old = name_beside(path_);
    fs::rename(path_, old, error);
    check(!error, "cannot replace ", path_.string(), ": ", error.message());
  }
  fs::rename(temporary_, path_, error);
  if (error && !old.empty()) fs::rename(old, path_, ignored);
  check(!error, "cannot write ", path_.string(), ": ", error.message());
  temporary_.clear();
  if (!old.empty()) fs::remove_all(old, ignored);
}

}  // namespace glimpse
