#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

namespace glimpse {

/// A cgroup that this process is in, or one above it.
struct Cgroup {
  std::filesystem::path folder;
  bool unified = true;  ///< version 2

  /// What one of its files says; "" without such a file.
  std::string text(const char* file) const {
    std::ifstream in(folder / file);
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

/// Calls visit(cgroup) for those of this process that have the `controller`, from its own on upwards. `root`
/// is where /proc and /sys are.
void for_each_cgroup(const std::filesystem::path& root, const std::string& controller,
                     const std::function<void(const Cgroup&)>& visit);

}  // namespace glimpse
