#pragma once

#include <filesystem>

namespace glimpse {

/// How a lock is held, and whether it is waited for or an Error names who has it.
enum class LockKind { exclusive, shared, exclusive_wait };

/// A lock between processes on a file, which is made where there is none. It ends with this object, and with
/// the process however that ends.
class FileLock {
 public:
  /// Error for what is no regular file or cannot be written.
  FileLock(const std::filesystem::path& file, LockKind kind);
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

  /// The open file, for appending.
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

}  // namespace glimpse
