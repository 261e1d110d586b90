#pragma once

#include <nlohmann/json.hpp>
#include <optional>

namespace glimpse {

/// Processor, cores, memory and threads used; nothing that names the machine.
nlohmann::json machine_facts();

/// How much more memory this process held at once than at the start, since this was made. Freed memory is
/// given back first, so that what ran before does not count.
class PeakMemory {
 public:
  PeakMemory();
  /// MiB; nothing where the kernel does not let a process start a new peak (/proc/self/clear_refs).
  std::optional<double> mib() const;

 private:
  std::optional<double> start_mib_;
};

}  // namespace glimpse
