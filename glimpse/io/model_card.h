#pragma once

#include <filesystem>
#include <string>

namespace glimpse {

/// Whether a folder holds the weights of a whole model, not only what is added to one.
bool has_model_weights(const std::filesystem::path& dir);

/// The hub id of the model that pruning modules or an adapter were made for, as their folder names it: in
/// adapter_config.json (base_model_name_or_path), at the head of README.md (base_model), or in config.json
/// (_name_or_path). "" if none does: a path on the machine of who made them is no name.
std::string base_model_of(const std::filesystem::path& dir);

}  // namespace glimpse
