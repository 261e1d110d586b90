#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>

namespace glimpse {

/// The element types of a torch.save file by the Python class of their storage ("torch.FloatStorage").
const std::unordered_map<std::string_view, at::ScalarType>& storage_types();

/// Gives the bytes [n] (uint8, CPU) of the storage with this key; the same key may be asked for many times.
using StorageLoader = std::function<at::Tensor(const std::string& key)>;

/// Interprets the pickle of a torch.save file and returns its tensors under their dotted names: nested
/// dictionaries and lists are flattened, {"a": {"b.c": [t]}} -> "a.b.c.0", and everything that is no tensor
/// is left out. Tensors are views of the loaded storages. Only what rebuilds tensors, dictionaries, lists and
/// scalars is understood: any other global or opcode is an Error naming it, and nothing a pickle says is ever
/// executed. `what` starts error messages.
std::map<std::string, at::Tensor> unpickle_tensors(std::string_view program,
                                                   const StorageLoader& load_storage,
                                                   const std::string& what);

}  // namespace glimpse
