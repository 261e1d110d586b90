#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "glimpse/io/file_lock.h"

namespace glimpse {

/// Calls visit(object) for each whole line of a file of JSON lines, another process may still append to it; a
/// missing file has none. Error naming file and line for what is no JSON.
void visit_whole_lines(const std::filesystem::path& file,
                       const std::function<void(const nlohmann::json&)>& visit);

/// A file of JSON lines that only this process appends to, as long as this object lives: a second one is an
/// Error that names the first.
class LineFile {
 public:
  /// Removes a last line without its end, which is what a killed writer leaves; with `empty` all lines.
  explicit LineFile(const std::filesystem::path& file, bool empty = false);
  /// Appends one line, whole; error when it cannot be written.
  void write(const nlohmann::json& line);

 private:
  std::string name_;
  FileLock lock_;
};

}  // namespace glimpse
