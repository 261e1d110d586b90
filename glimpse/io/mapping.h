#pragma once

#include <cstddef>
#include <filesystem>

namespace glimpse {

/// A whole file in memory, copy-on-write: nothing is read before it is used, and writing changes private
/// memory only. Throws Error naming the file when it cannot be mapped. The file must not be shortened in
/// place meanwhile.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

  /// Gives back the memory of the whole pages inside [data, data + size) of some mapping: they are read from
  /// the file again if they are used after all.
  static void release(const void* data, size_t size);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace glimpse
