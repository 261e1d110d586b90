#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

namespace glimpse {

/// A tensor of host memory on `device`, without waiting for what the device is doing. The same on the CPU.
at::Tensor to_device(const at::Tensor& host, at::Device device);

/// Waits until the device has done what it was given; for clocks. Nothing on the CPU.
void synchronise(at::Device device);

/// Bytes that are allocated on an accelerator now, and the most since the last reset_peak_bytes(). 0 on the
/// CPU.
size_t device_bytes(at::Device device);
size_t peak_device_bytes(at::Device device);
void reset_peak_bytes(at::Device device);

}  // namespace glimpse
