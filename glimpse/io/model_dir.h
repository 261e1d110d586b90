#pragma once

#include <filesystem>
#include <string>

namespace glimpse {

/// Finds the directory of a model: an existing directory, or a hub id "org/name" in the local Hugging Face
/// cache (its revision "main"). The cache is $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub,
/// else ${XDG_CACHE_HOME:-~/.cache}/huggingface/hub. Nothing is downloaded: an Error lists where was looked
/// and what to do.
std::filesystem::path resolve_model_dir(const std::string& name_or_path);

}  // namespace glimpse
