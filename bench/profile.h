#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

namespace glimpse::bench {

/// Runs `work` once under libtorch's profiler and prints the kernels that took most of the device's time (on
/// the CPU: operations): calls, total and share, and how much of the time the device did nothing.
void show_profile(const std::string& title, at::Device device, const std::function<void()>& work);

}  // namespace glimpse::bench
