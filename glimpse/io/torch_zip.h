#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace glimpse {

/// Reads the tensors of a file written by PyTorch's torch.save (the zip format of PyTorch 1.6 and later) as
/// CPU tensors under dotted names: {"attn_fuser": {"layers.0.x": t}} -> "attn_fuser.layers.0.x"; everything
/// that is no tensor is left out. Tensors keep their strides and share storages as they did when saved. The
/// file is interpreted, never executed: Error naming what it asked for when that is more than tensors,
/// dictionaries, lists and scalars, and when the file is damaged.
std::map<std::string, at::Tensor> load_torch_zip(const std::filesystem::path& path);

/// Writes tensors (any device and strides) as torch.save does: stored uncompressed, so that torch.load and
/// load_torch_zip read them. The file holds one dictionary: "a.b.c" becomes {"a": OrderedDict{"b.c": t}}, a
/// state dict per first component, and a name without a dot stands for the tensor itself. `dicts` are there
/// even when no tensor belongs to them (a module without parameters). The file appears only once it is
/// complete. Error for a dtype that load_torch_zip does not read and for a name that is a tensor and a
/// dictionary.
void save_torch_zip(const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
                    const std::vector<std::string>& dicts = {});

}  // namespace glimpse
