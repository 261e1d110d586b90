#pragma once

#include <filesystem>
#include <fstream>

namespace glimpse {

/// A file that appears under its name only when it is complete: written under a temporary name beside it,
/// then flushed to disk and renamed by commit(). Without commit() the temporary file is removed and a file
/// that was there before stays as it was.
class AtomicFile {
 public:
  /// Error when the folder cannot be written to, or when `path` exists and is no regular file.
  explicit AtomicFile(const std::filesystem::path& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Binary output stream of the new contents.
  std::ostream& stream() { return stream_; }

  /// Puts the contents in place. Error when something could not be written (disk full, ...). Call it once.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  std::ofstream stream_;
};

}  // namespace glimpse
