#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>

namespace glimpse {

/// Reads the tensors of a file written by PyTorch's torch.save (the zip format of PyTorch 1.6 and later) as
/// CPU tensors under dotted names: {"attn_fuser": {"layers.0.x": t}} -> "attn_fuser.layers.0.x"; everything
/// that is no tensor is left out. Tensors keep their strides and share storages as they did when saved. The
/// file is interpreted, never executed: Error naming what it asked for when that is more than tensors,
/// dictionaries, lists and scalars, and when the file is damaged.
std::map<std::string, at::Tensor> load_torch_zip(const std::filesystem::path& path);

}  // namespace glimpse
