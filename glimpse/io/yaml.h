#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace glimpse {

/// A YAML file as JSON; plain scalars are numbers, booleans and null by YAML's core schema. Error naming the
/// file: when it is malformed, nested deeper than 16 levels, or sets a name twice.
nlohmann::json read_yaml(const std::filesystem::path& file);

}  // namespace glimpse
