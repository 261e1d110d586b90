#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>

namespace glimpse {

/// The contents of one safetensors file.
struct Safetensors {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Memory-maps a safetensors file (BF16, F16, F32, F64, I64, I32, I16, I8, U8, BOOL, F8_E4M3). The tensors
/// are contiguous CPU tensors that alias the mapping and keep it alive; nothing is read before it is used,
/// and writing to a tensor changes private memory, never the file. A tensor whose offset is not a multiple of
/// its element size is copied. Error naming file and tensor when the file is truncated, malformed or holds
/// another dtype. The file must not be shortened in place while its tensors are in use (replacing it by
/// renaming is fine).
Safetensors load_safetensors(const std::filesystem::path& path);

/// Writes tensors (any device and strides) to a safetensors file that appears only once it is complete.
/// Mapped again, a tensor whose size is a multiple of 64 bytes begins at one, any other at a multiple of its
/// element size.
void save_safetensors(const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace glimpse
