#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace glimpse {

/// Parses a JSON file. Error naming the file, and the line and column when it is malformed or nested deeper
/// than 100 levels.
nlohmann::json read_json(const std::filesystem::path& path);

/// Error unless `path` is a regular file (after following links) that exists.
void check_is_file(const std::filesystem::path& path);

}  // namespace glimpse
