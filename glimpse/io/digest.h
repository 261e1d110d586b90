#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace glimpse {

/// The hash by which the hub calls a file: what it is called tells which one.
class Digest {
 public:
  /// Of a file of `size` bytes that is called `etag`: 64 hexadecimal digits are its SHA-256, 40 the SHA-1
  /// that git gives it; what other names say of the content is not known.
  Digest(const std::string& etag, uint64_t size);
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void add(const void* data, size_t size);
  /// Forgets what was added.
  void restart();
  /// Whether the name is that of what was added, or says nothing. Call it once.
  bool agrees();
  /// "SHA-256", "git's SHA-1", or "" for a name that says nothing.
  const char* kind() const;

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::string etag_;
  uint64_t size_;
  std::unique_ptr<void, Free> context_;  // null: it says nothing
};

}  // namespace glimpse
