#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace glimpse {

/// A YAML file as JSON; plain scalars are numbers, booleans and null by YAML's core schema. Error naming the
/// file: when it is malformed, nested deeper than 16 levels, sets a name twice, or has, with what aliases
/// repeat, more than 100,000 values.
nlohmann::json read_yaml(const std::filesystem::path& file);

/// The same of a text; errors begin with `name`.
nlohmann::json parse_yaml(const std::string& text, const std::string& name);

}  // namespace glimpse
