#include "glimpse/base/json_file.h"

#include <algorithm>
#include <fstream>
#include <string_view>

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

void check_is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  check(std::filesystem::exists(path, ignored), "no such file: ", path.string());
  check(std::filesystem::is_regular_file(path, ignored), "not a regular file: ", path.string());
  // A few lines that stand for a file which git did not fetch.
  constexpr std::string_view pointer = "version https://git-lfs.github.com/spec/";
  if (std::filesystem::file_size(path, ignored) > 1024) return;
  std::string begin(pointer.size(), '\0');
  std::ifstream(path, std::ios::binary).read(begin.data(), static_cast<std::streamsize>(begin.size()));
  check(begin != pointer, path.string(),
        ": is a Git LFS pointer; the file was not fetched (run git lfs pull in its repository)");
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

nlohmann::json parse_json(const std::string& text, const std::string& name, int deepest) {
  // Scanned first: the parser's own depth callback doubles the time of large files.
  check(depth_of(text) <= deepest, name, ": nested deeper than ", deepest, " levels");
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail(name, " is not valid JSON: ", error.what());
  }
}

nlohmann::json read_json(const std::filesystem::path& path) {
  return parse_json(read_text(path), path.string());
}

std::string json_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json none;
  const auto entry = object.find(key);
  return entry == object.end() ? none : *entry;
}

}  // namespace glimpse
