#pragma once

#include <filesystem>
#include <string>

namespace glimpse {

/// Finds the directory of a model: an existing directory, or a hub id "org/name" or "org/name@revision" in
/// the local Hugging Face cache (hub_cache.h). Nothing is downloaded: an Error lists where was looked and
/// what to do.
std::filesystem::path resolve_model_dir(const std::string& name_or_path);

}  // namespace glimpse
