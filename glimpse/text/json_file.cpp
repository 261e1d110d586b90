#include "glimpse/text/json_file.h"

#include <fstream>

#include "glimpse/base/check.h"

namespace glimpse {

std::string read_text(const std::filesystem::path& path, size_t max_bytes) {
  check(std::filesystem::is_regular_file(path), path.string(), ": no such file");
  const auto size = std::filesystem::file_size(path);
  check(size <= max_bytes, path.string(), ": has ", size, " bytes, at most ", max_bytes, " are allowed");
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  check(file.read(text.data(), static_cast<std::streamsize>(size)).good(), path.string(), ": cannot be read");
  return text;
}

nlohmann::json read_json(const std::filesystem::path& path) {
  using nlohmann::json;
  constexpr int deepest = 64;
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    check(depth <= deepest, path.string(), ": JSON nested more than ", deepest, " deep");
    return true;
  };
  try {
    return json::parse(read_text(path), shallow);
  } catch (const json::exception& error) {
    fail(path.string(), ": ", error.what());
  }
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json none;
  const auto entry = object.find(key);
  return entry == object.end() ? none : *entry;
}

}  // namespace glimpse
