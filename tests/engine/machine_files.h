#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace glimpse::test {

/// A folder with files of /proc and /sys that tell what a process may use.
class MachineFiles {
 public:
  MachineFiles()
      : dir_(std::filesystem::temp_directory_path() / ("glimpse_machine_" + std::to_string(getpid()))) {}
  ~MachineFiles() { std::filesystem::remove_all(dir_); }
  MachineFiles(const MachineFiles&) = delete;

  MachineFiles& with(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((dir_ / file).parent_path());
    std::ofstream(dir_ / file) << text;
    return *this;
  }
  const std::filesystem::path& dir() const { return dir_; }

 private:
  const std::filesystem::path dir_;
};

}  // namespace glimpse::test
