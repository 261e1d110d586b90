#include "glimpse/io/json_file.h"

#include <fstream>

#include "glimpse/base/check.h"

namespace glimpse {

void check_is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  check(std::filesystem::exists(path, ignored), "no such file: ", path.string());
  check(std::filesystem::is_regular_file(path, ignored), "not a regular file: ", path.string());
}

nlohmann::json read_json(const std::filesystem::path& path) {
  check_is_file(path);
  std::ifstream in(path, std::ios::binary);
  check(in.good(), "cannot read ", path.string());
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    check(depth <= 100, path.string(), ": nested deeper than 100 levels");
    return true;
  };
  try {
    return nlohmann::json::parse(in, check_depth);
  } catch (const nlohmann::json::exception& error) {
    fail(path.string(), " is not valid JSON: ", error.what());
  }
}

}  // namespace glimpse
