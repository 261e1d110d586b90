#pragma once

#include <ATen/ATen.h>

#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace glimpse {

/// Makes a folder of a cache if it is not there, for its owner alone. Error if it cannot be made or is none.
void make_private_folder(const std::filesystem::path& dir);

/// Tensors in a safetensors file of a cache, with a checksum that takes in for what `key` they were made, and
/// a `seed` that others need not know. Error: it cannot be written.
void save_checked(const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
                  uint64_t seed, const std::string& key);

/// The most bytes that such a file takes.
uint64_t checked_bytes(const std::map<std::string, at::Tensor>& tensors);

/// The tensors of such a file; every byte is looked at. Nothing if there is none. Error: it is damaged, or of
/// another key or seed.
std::optional<std::map<std::string, at::Tensor>> load_checked(const std::filesystem::path& path,
                                                              uint64_t seed, const std::string& key);

/// The same as what `read` makes of the tensors, a pointer: null if there is no file. One that is damaged,
/// somebody else's, or that `read` refuses is removed and as if it were not there.
template <class Read>
auto load_checked(const std::filesystem::path& path, uint64_t seed, const std::string& key, const Read& read)
    -> decltype(read(std::map<std::string, at::Tensor>())) {
  try {
    auto tensors = load_checked(path, seed, key);
    if (tensors) return read(*std::move(tensors));
  } catch (const std::exception&) {
    std::error_code error;
    std::filesystem::remove(path, error);
  }
  return nullptr;
}

}  // namespace glimpse
