#include "glimpse/engine/checked_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "glimpse/base/check.h"
#include "glimpse/engine/hash.h"
#include "glimpse/io/safetensors.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

std::string checksum(uint64_t seed, const std::string& key,
                     const std::map<std::string, at::Tensor>& tensors) {
  Hash hash(seed);
  hash.add(key);
  for (const auto& [name, tensor] : tensors) {
    hash.add(name);
    hash.add(tensor);
  }
  return hash.text();
}

}  // namespace

void make_private_folder(const fs::path& dir) {
  if (!fs::exists(dir)) {
    std::error_code error;
    if (dir.has_parent_path()) fs::create_directories(dir.parent_path(), error);
    check(mkdir(dir.c_str(), 0700) == 0 || errno == EEXIST, "cannot make the folder ", dir.string(), ": ",
          std::strerror(errno));
  }
  check(fs::is_directory(dir), dir.string(), " is no folder");
}

void save_checked(const fs::path& path, const std::map<std::string, at::Tensor>& tensors, uint64_t seed,
                  const std::string& key) {
  save_safetensors(path, tensors, {{"checksum", checksum(seed, key, tensors)}});
}

uint64_t checked_bytes(const std::map<std::string, at::Tensor>& tensors) {
  uint64_t bytes = 1024;
  // Each has a place at a multiple of 64 bytes, and in the header its name, type, sizes and place.
  for (const auto& [name, tensor] : tensors) bytes += tensor.nbytes() + 64 + name.size() + 256;
  return bytes;
}

std::optional<std::map<std::string, at::Tensor>> load_checked(const fs::path& path, uint64_t seed,
                                                              const std::string& key) {
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  Safetensors file = load_safetensors(path);
  const auto sum = file.metadata.find("checksum");
  check(sum != file.metadata.end() && sum->second == checksum(seed, key, file.tensors), path.string(),
        ": is damaged");
  return std::move(file.tensors);
}

}  // namespace glimpse
