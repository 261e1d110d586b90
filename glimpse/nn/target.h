#pragma once

#include <string>

namespace glimpse {

/// Lets the CPU kernels of nn/ use at most this instruction set: auto (the CPU's best), avx512, avx2, sse4 or
/// scalar. Error for other names and for what the CPU does not have. libtorch's own kernels choose for
/// themselves.
void use_kernels(const std::string& name);

}  // namespace glimpse
