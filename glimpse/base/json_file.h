#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace glimpse {

/// Error unless `path` is a regular file (after following links) that exists and was fetched: not a Git LFS
/// pointer.
void check_is_file(const std::filesystem::path& path);

/// The content of a regular file of at most `max_bytes`. Error naming it.
std::string read_text(const std::filesystem::path& path, size_t max_bytes = size_t{256} << 20);

/// Parses JSON. Error, which begins with `name`, with the line and column, when it is malformed or nested
/// deeper than that many levels: whatever walks through it then has stack enough.
nlohmann::json parse_json(const std::string& text, const std::string& name, int deepest = 100);

/// Parses a JSON file. Error naming the file, and the line and column when it is malformed or nested deeper
/// than 100 levels.
nlohmann::json read_json(const std::filesystem::path& path);

/// JSON on one line; what is no UTF-8 in its texts (paths, the command line) is replaced.
std::string json_text(const nlohmann::json& value);

/// The member `key` of an object, or null when there is none.
const nlohmann::json& member(const nlohmann::json& object, const char* key);

}  // namespace glimpse
