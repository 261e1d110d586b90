#include "glimpse/io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "glimpse/base/check.h"

namespace glimpse {
namespace fs = std::filesystem;

namespace {

// Who holds a lock on the open file, as the kernel tells: "1: FLOCK ADVISORY WRITE pid major:minor:inode 0
// EOF".
std::string holder(int fd) {
  struct stat about {};
  std::ifstream locks("/proc/locks");
  for (std::string line; ::fstat(fd, &about) == 0 && std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number, kind, mode, access, pid, place;
    words >> number >> kind >> mode >> access >> pid >> place;
    if (kind != "FLOCK" || !place.ends_with(concat(":", about.st_ino))) continue;
    std::ifstream comm(concat("/proc/", pid, "/comm"));
    if (std::string name; std::getline(comm, name)) return concat("process ", pid, " (", name, ")");
  }
  return "another process, perhaps of another machine,";
}

}  // namespace

FileLock::FileLock(const fs::path& file, LockKind kind) {
  std::error_code ignored;
  check(!fs::exists(file, ignored) || fs::is_regular_file(file, ignored), file.string(),
        ": exists and is not a regular file");
  fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  check(fd_ >= 0, file.string(), ": cannot be written: ", std::strerror(errno));
  const int how = kind == LockKind::shared           ? LOCK_SH | LOCK_NB
                  : kind == LockKind::exclusive_wait ? LOCK_EX
                                                     : LOCK_EX | LOCK_NB;
  int result = 0;
  do result = ::flock(fd_, how);
  while (result != 0 && errno == EINTR);
  if (result == 0) return;
  const bool taken = errno == EWOULDBLOCK;
  const std::string problem =
      taken ? concat(holder(fd_), " is writing there; wait until it is done, or stop it")
            : concat("cannot be locked: ", std::strerror(errno));
  ::close(fd_);
  fail(file.string(), ": ", problem);
}

FileLock::~FileLock() {
  ::close(fd_);
}

}  // namespace glimpse
