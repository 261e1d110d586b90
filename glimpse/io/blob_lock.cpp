#include "glimpse/io/blob_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "glimpse/base/check.h"
#include "glimpse/io/hub_connection.h"

namespace glimpse {
namespace fs = std::filesystem;

OpenFile::OpenFile(fs::path path, int flags)
    : path_(std::move(path)), fd_(::open(path_.c_str(), flags | O_CLOEXEC, 0666)) {
  check(fd_ >= 0, path_.string(), ": cannot be opened: ", std::strerror(errno));
}

OpenFile::~OpenFile() {
  ::close(fd_);
}

uint64_t OpenFile::size() const {
  struct stat about {};
  check(::fstat(fd_, &about) == 0, path_.string(), ": ", std::strerror(errno));
  return static_cast<uint64_t>(about.st_size);
}

void OpenFile::cut(uint64_t size) {
  check(::ftruncate(fd_, static_cast<off_t>(size)) == 0, path_.string(), ": ", std::strerror(errno));
}

bool OpenFile::append(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(fd_, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

BlobLock::BlobLock(const fs::path& path, const FetchWatch& watch, const std::string& name,
                   const std::stop_token& stop) {
  for (bool told = false;;) {
    check_goes_on(stop);
    file_.emplace(path, O_RDWR | O_CREAT);
    if (::flock(file_->fd(), LOCK_EX | LOCK_NB) == 0) {
      // Who had it may have removed it: then the others would lock another file.
      struct stat here {
      }, there{};
      if (::fstat(file_->fd(), &here) == 0 && ::stat(path.c_str(), &there) == 0 &&
          here.st_ino == there.st_ino && here.st_dev == there.st_dev)
        return;
      continue;
    }
    check(errno == EWOULDBLOCK || errno == EINTR, path.string(),
          ": cannot be locked: ", std::strerror(errno));
    if (!told) watch.note(concat(name, ": another process is fetching it; waiting"));
    told = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace glimpse
