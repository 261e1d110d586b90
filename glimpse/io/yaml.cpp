#include "glimpse/io/yaml.h"

#include <yaml-cpp/yaml.h>

#include <charconv>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse {

namespace {

using nlohmann::json;

constexpr int kMostValues = 100'000;  // aliases can make few lines into any number

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

json to_json_value(const YAML::Node& node, int& values, int depth = 0) {
  check(depth < 16, "nested too deeply");
  check(++values <= kMostValues, "more than ", kMostValues, " values");
  if (node.IsMap()) {
    json out = json::object();
    for (const auto& item : node) {
      const auto name = item.first.as<std::string>();
      check(!out.contains(name), "'", name, "' is set twice");
      out[name] = to_json_value(item.second, values, depth + 1);
    }
    return out;
  }
  if (node.IsSequence()) {
    json out = json::array();
    for (const auto& item : node) out.push_back(to_json_value(item, values, depth + 1));
    return out;
  }
  return node.IsScalar() ? scalar(node) : json(nullptr);
}

template <class Load>
json loaded(const std::string& name, const Load& load) {
  int values = 0;
  try {
    return to_json_value(load(), values);
  } catch (const YAML::Exception& error) {
    fail(name, ": ", error.what());
  } catch (const Error& error) {
    fail(name, ": ", error.what());
  }
}

}  // namespace

json read_yaml(const std::filesystem::path& file) {
  check_is_file(file);
  return loaded(file.string(), [&] { return YAML::LoadFile(file.string()); });
}

json parse_yaml(const std::string& text, const std::string& name) {
  return loaded(name, [&] { return YAML::Load(text); });
}

}  // namespace glimpse
