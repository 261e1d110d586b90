#include "glimpse/io/yaml.h"

#include <yaml-cpp/yaml.h>

#include <charconv>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse {

namespace {

using nlohmann::json;

// YAML's plain scalars by its core schema; quoted ones are text.
json scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;
  if (text.empty() || text == "null" || text == "~") return nullptr;
  if (text == "true" || text == "false") return text == "true";
  const char *first = text.data(), *last = first + text.size();
  int64_t whole = 0;
  if (const auto [end, error] = std::from_chars(first, last, whole); error == std::errc() && end == last)
    return whole;
  double number = 0;
  if (const auto [end, error] = std::from_chars(first, last, number); error == std::errc() && end == last)
    return number;
  return text;
}

json to_json_value(const YAML::Node& node, int depth = 0) {
  check(depth < 16, "nested too deeply");
  if (node.IsMap()) {
    json out = json::object();
    for (const auto& item : node) {
      const auto name = item.first.as<std::string>();
      check(!out.contains(name), "'", name, "' is set twice");
      out[name] = to_json_value(item.second, depth + 1);
    }
    return out;
  }
  if (node.IsSequence()) {
    json out = json::array();
    for (const auto& item : node) out.push_back(to_json_value(item, depth + 1));
    return out;
  }
  return node.IsScalar() ? scalar(node) : json(nullptr);
}

}  // namespace

json read_yaml(const std::filesystem::path& file) {
  check_is_file(file);
  try {
    return to_json_value(YAML::LoadFile(file.string()));
  } catch (const YAML::Exception& error) {
    fail(file.string(), ": ", error.what());
  } catch (const Error& error) {
    fail(file.string(), ": ", error.what());
  }
}

}  // namespace glimpse
