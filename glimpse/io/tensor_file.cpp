#include "glimpse/io/tensor_file.h"

#include "glimpse/base/check.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/io/torch_zip.h"

namespace glimpse {

std::map<std::string, at::Tensor> load_tensors(const std::filesystem::path& path) {
  const auto ending = path.extension();
  if (ending == ".safetensors") return load_safetensors(path).tensors;
  check(ending == ".pt" || ending == ".pth" || ending == ".bin", "cannot read weights from ", path.string(),
        ": expected a .safetensors, .pt, .pth or .bin file");
  return load_torch_zip(path);
}

}  // namespace glimpse
