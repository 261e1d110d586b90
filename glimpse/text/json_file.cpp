#include "glimpse/text/json_file.h"

#include <algorithm>
#include <fstream>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

/// How deep the brackets outside strings are nested.
int depth_of(std::string_view json) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"')
      in_string = !in_string;
    else if (in_string)
      i += c == '\\';
    else if (c == '[' || c == '{')
      deepest = std::max(deepest, ++depth);
    else if (c == ']' || c == '}')
      --depth;
  }
  return deepest;
}

}  // namespace

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
  constexpr int deepest = 64;
  const std::string text = read_text(path);
  check(depth_of(text) <= deepest, path.string(), ": JSON nested more than ", deepest, " deep");
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail(path.string(), ": ", error.what());
  }
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json none;
  const auto entry = object.find(key);
  return entry == object.end() ? none : *entry;
}

}  // namespace glimpse
