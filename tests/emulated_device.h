#pragma once

#include <cstdint>
#include <ostream>

namespace glimpse::test {

/// A device for machines without an accelerator, "emulated": libtorch's PrivateUse1 backend over host memory.
/// What CUDA refuses fails here too: an operation whose tensors lie partly on the CPU (single numbers and
/// the indices of index() apart), and reading a tensor's memory directly, as its addresses are not the
/// host's. Everything else runs on the CPU's ATen kernels.
inline constexpr const char* kEmulated = "emulated";

/// Makes libtorch know the device; may be called again.
void register_emulated_device();

/// Copies between host and emulated device since the program began.
struct Transfers {
  int64_t to_host = 0;    ///< item() and operations whose result's shape depends on values included
  int64_t to_device = 0;  ///< all
  int64_t blocking = 0;   ///< of those to the device, what the host would wait for: not made by to_device()
  Transfers operator-(const Transfers& earlier) const {
    return {to_host - earlier.to_host, to_device - earlier.to_device, blocking - earlier.blocking};
  }
  bool operator==(const Transfers&) const = default;
};
inline std::ostream& operator<<(std::ostream& out, const Transfers& t) {
  return out << t.to_host << " to the host, " << t.to_device << " to the device (" << t.blocking
             << " waited for)";
}
Transfers transfers();

}  // namespace glimpse::test
