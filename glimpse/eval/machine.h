#pragma once

#include <nlohmann/json.hpp>

namespace glimpse {

/// Processor, cores, memory and threads used; nothing that names the machine.
nlohmann::json machine_facts();

/// Largest resident memory of this process since the last reset, MiB.
double peak_resident_mib();
/// Starts a new peak, where the kernel allows it.
void reset_peak_resident();

}  // namespace glimpse
