#pragma once

#include <filesystem>

namespace glimpse {

/// A directory that appears under its name only when it is complete: filled under a temporary name beside it,
/// then renamed by commit(). Without commit() what was filled in is removed and a directory that was there
/// before stays as it was.
class AtomicDirectory {
 public:
  /// Error when the parent folder cannot be written to, or when `path` exists: anything at all, or with
  /// `replace` anything but a directory.
  AtomicDirectory(const std::filesystem::path& path, bool replace);
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;
  ~AtomicDirectory();

  /// Where to put the files.
  const std::filesystem::path& temporary() const { return temporary_; }

  /// Puts the directory in place of the old one. Call it once.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
};

}  // namespace glimpse
