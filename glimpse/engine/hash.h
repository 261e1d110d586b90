#pragma once

#include <ATen/ATen.h>
#include <xxhash.h>

#include <cstdint>
#include <iomanip>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "glimpse/base/check.h"

namespace glimpse {

/// 64 bits that nobody can guess.
inline uint64_t random_word() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

/// 128 bits as 32 hexadecimal digits.
inline std::string hex(uint64_t high, uint64_t low) {
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(16) << high << std::setw(16) << low;
  return out.str();
}

/// XXH3's state of 128 bits, fed with values. Every part goes with its size, so that parts cannot run into
/// each other.
class Hash {
 public:
  explicit Hash(uint64_t seed) : state_(XXH3_createState()) {
    check(state_ != nullptr, "out of memory");
    XXH3_128bits_reset_withSeed(state_, seed);
  }
  ~Hash() { XXH3_freeState(state_); }
  Hash(const Hash&) = delete;

  void bytes(const void* data, size_t size) {
    XXH3_128bits_update(state_, &size, sizeof size);
    XXH3_128bits_update(state_, data, size);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void add(T value) { bytes(&value, sizeof value); }
  void add(const std::string& text) { bytes(text.data(), text.size()); }
  template <class T>
  void add(const std::optional<T>& value) {
    add(value.has_value());
    if (value) add(*value);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void add(const std::vector<T>& values) { bytes(values.data(), values.size() * sizeof(T)); }
  void add(const at::Tensor& tensor) {
    const at::Tensor flat = tensor.cpu().contiguous();
    add(static_cast<int>(flat.scalar_type()));
    add(flat.sizes().vec());
    bytes(flat.const_data_ptr(), flat.nbytes());
  }
  XXH128_hash_t sum() const { return XXH3_128bits_digest(state_); }
  /// As hex() writes it.
  std::string text() const {
    const XXH128_hash_t all = sum();
    return hex(all.high64, all.low64);
  }

 private:
  XXH3_state_t* state_;
};

}  // namespace glimpse
