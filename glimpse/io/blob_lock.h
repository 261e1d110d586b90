#pragma once

#include "glimpse/io/hub.h"

namespace glimpse {

/// A file that is open for as long as this lives.
class OpenFile {
 public:
  /// Opens it with open(2)'s flags. Error naming it.
  OpenFile(std::filesystem::path path, int flags);
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile();

  int fd() const { return fd_; }
  uint64_t size() const;
  void cut(uint64_t size);
  /// False when not all could be written; errno says why.
  bool append(const char* data, size_t size);

 private:
  std::filesystem::path path_;
  int fd_;
};

/// The lock of a blob, as the hub's own client takes it. Whoever has it fetches; the others wait.
class BlobLock {
 public:
  /// Waits; `watch` hears that it does, about the file `name`. Error of the kind `cancelled` when a stop is
  /// requested.
  BlobLock(const std::filesystem::path& path, const FetchWatch& watch, const std::string& name,
           const std::stop_token& stop);

 private:
  std::optional<OpenFile> file_;  // closing it unlocks
};

}  // namespace glimpse
