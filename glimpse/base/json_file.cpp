#include "glimpse/base/json_file.h"

#include <fstream>

#include "glimpse/base/check.h"

namespace glimpse {

void check_is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  check(std::filesystem::exists(path, ignored), "no such file: ", path.string());
  check(std::filesystem::is_regular_file(path, ignored), "not a regular file: ", path.string());
}

std::string read_text(const std::filesystem::path& path, size_t max_bytes) {
  check_is_file(path);
  const auto size = std::filesystem::file_size(path);
  check(size <= max_bytes, path.string(), ": has ", size, " bytes, at most ", max_bytes, " are allowed");
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  check(file.read(text.data(), static_cast<std::streamsize>(size)).good(), path.string(), ": cannot be read");
  return text;
}

nlohmann::json read_json(const std::filesystem::path& path) {
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    check(depth <= 100, path.string(), ": nested deeper than 100 levels");
    return true;
  };
  try {
    return nlohmann::json::parse(read_text(path), check_depth);
  } catch (const nlohmann::json::exception& error) {
    fail(path.string(), " is not valid JSON: ", error.what());
  }
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json none;
  const auto entry = object.find(key);
  return entry == object.end() ? none : *entry;
}

}  // namespace glimpse
