#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace glimpse::test {

template <class T>
std::string bytes_of(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

/// A text as GGUF files hold it.
inline std::string text_bytes(const std::string& text) {
  return bytes_of(uint64_t{text.size()}) + text;
}

/// Writes a GGUF file field by field, so that every field can be wrong.
struct GgufBytes {
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;
  std::vector<std::string> keys, tensors;
  std::string data;

  void key(const std::string& name, uint32_t kind, const std::string& value) {
    keys.push_back(text_bytes(name) + bytes_of(kind) + value);
  }
  /// Sizes innermost first, as in the file.
  void tensor(const std::string& name, const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
    std::string entry = text_bytes(name) + bytes_of(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) entry += bytes_of(size);
    tensors.push_back(entry + bytes_of(type) + bytes_of(offset));
  }
  std::string header(uint64_t tensor_count, uint64_t key_count) const {
    std::string bytes = magic + bytes_of(version) + bytes_of(tensor_count) + bytes_of(key_count);
    for (const std::string& each : keys) bytes += each;
    for (const std::string& each : tensors) bytes += each;
    return bytes;
  }
  std::string file() const {
    std::string bytes = header(tensors.size(), keys.size());
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data;
  }
};

}  // namespace glimpse::test
