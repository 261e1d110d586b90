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

/// The file that a line typed or pasted into a terminal means: as it is if there is one of that name, else
/// without white space around it, quotes, backslashes before signs, or file:// before it, and with the home
/// directory for a "~".
std::string pasted_path(const std::string& text);
/// Quotes and backslashes as a shell reads them.
std::string unquoted(const std::string& text);

/// FILE for one thing; FILE with .1, .2, ... before its extension for several.
std::filesystem::path numbered(const std::filesystem::path& file, size_t index, size_t count);

/// The same with the home directory in place of a "~" before its first "/".
std::string with_home(const std::string& path);

}  // namespace glimpse::app
