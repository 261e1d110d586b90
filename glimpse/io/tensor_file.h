#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>

namespace glimpse {

/// The tensors of one file: load_safetensors for .safetensors, load_torch_zip for .pt, .pth and .bin. Error
/// for any other ending.
std::map<std::string, at::Tensor> load_tensors(const std::filesystem::path& path);

}  // namespace glimpse
