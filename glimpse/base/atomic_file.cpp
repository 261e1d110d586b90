#include "glimpse/base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

/// Creates an empty file of a fresh name beside `path`, with the permissions that the umask gives.
fs::path create_beside(const fs::path& path) {
  static std::atomic<unsigned> counter = 0;
  while (true) {
    const fs::path fresh = concat(path.string(), ".tmp-", ::getpid(), "-", counter++);
    const int file = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) {
      ::close(file);
      return fresh;
    }
    check(errno == EEXIST, "cannot write ", path.string(), ": ", std::strerror(errno));
  }
}

/// Where links lead, whether or not there is a file yet: the file is replaced, and the link stays.
fs::path link_target(fs::path path) {
  constexpr int longest = 40;  // as the kernel follows
  std::error_code ignored;
  for (int i = 0; i < longest && fs::is_symlink(path, ignored); ++i)
    path = path.parent_path() / fs::read_symlink(path, ignored);
  check(!fs::is_symlink(path, ignored), "cannot write ", path.string(), ": it is a link that leads nowhere");
  return path;
}

bool flush_to_disk(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool flushed = ::fsync(file) == 0;
  ::close(file);
  return flushed;
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path) : path_(link_target(path)) {
  std::error_code ignored;
  check(!fs::exists(path, ignored) || fs::is_regular_file(path, ignored), "cannot write ", path.string(),
        ": it exists and is not a regular file");
  temporary_ = create_beside(path_);
  stream_.open(temporary_, std::ios::binary | std::ios::trunc);
}

AtomicFile::~AtomicFile() {
  stream_.close();
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove(temporary_, ignored);
}

void AtomicFile::commit() {
  invariant(!temporary_.empty(), "AtomicFile committed twice");
  stream_.close();
  check(stream_.good() && flush_to_disk(temporary_), "could not write all of ", path_.string(),
        " (is the disk full?)");
  std::error_code error;
  fs::rename(temporary_, path_, error);
  check(!error, "cannot write ", path_.string(), ": ", error.message());
  temporary_.clear();
  // The name itself is safe only once its folder is on disk; not every file system can do that.
  flush_to_disk(path_.has_parent_path() ? path_.parent_path() : ".");
}

}  // namespace glimpse
