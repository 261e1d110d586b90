#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace glimpse {

/// The content of a regular file of at most `max_bytes`. Throws Error naming it.
std::string read_text(const std::filesystem::path& path, size_t max_bytes = size_t{64} << 20);

/// Reads a JSON file. Throws Error naming it when it is malformed, too large or nested too deeply.
nlohmann::json read_json(const std::filesystem::path& path);

/// The member `key` of an object, or null when there is none.
const nlohmann::json& member(const nlohmann::json& object, const char* key);

}  // namespace glimpse
