#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

namespace glimpse {

/// Removes a last line without its end, which is what a killed writer leaves. Nothing where there is no file.
void repair_lines(const std::filesystem::path& file);

/// Calls visit(object) for each whole line of a file of JSON lines, another process may still append to it; a
/// missing file has none. Error naming file and line for what is no JSON.
void visit_whole_lines(const std::filesystem::path& file,
                       const std::function<void(const nlohmann::json&)>& visit);

/// A file of JSON lines that only this process appends to, as long as this object lives: a second one is an
/// Error.
class LineFile {
 public:
  explicit LineFile(const std::filesystem::path& file);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  /// Appends one line, whole; error when it cannot be written.
  void write(const nlohmann::json& line);

 private:
  std::string name_;
  int fd_ = -1;
};

/// A lock between processes that share a folder, held as long as this lives; waits for it.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& file);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace glimpse
