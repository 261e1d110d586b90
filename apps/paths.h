#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace glimpse::app {

/// A file that is read or written, and what the user calls it: "--overlay-out", "the file of rows".
struct NamedPath {
  std::string name;
  std::filesystem::path path;
};

/// Error when an output would be written over an input, or two outputs into one file, links followed.
void check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs);

/// The file that a line pasted into a terminal means: as it is if there is one of that name, else without
/// white space around it, quotes, backslashes before signs, or file:// before it.
std::string pasted_path(const std::string& text);

}  // namespace glimpse::app
