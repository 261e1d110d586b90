#pragma once

#include <string>
#include <vector>

namespace glimpse::bench {

/// Multiplications and additions per second of one kind of instruction.
struct InstructionRate {
  std::string name;  ///< "f32_fma", "bf16_dot" or "int8_dot"
  double per_s = 0;
  int bits = 0;  ///< of a register
};

/// What the CPU does in registers alone, on as many threads as ATen uses now: no product of matrices can be
/// faster, whatever its memory traffic. Only the kinds that this CPU has; AMX tiles are not among them.
std::vector<InstructionRate> instruction_rates();

}  // namespace glimpse::bench
