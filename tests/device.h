#pragma once

#include <ATen/Context.h>
#include <c10/core/Device.h>

#include <cstdlib>
#include <string>

#include "emulated_device.h"

namespace glimpse::test {

/// Name of the device that models, engines and training are tested on: GLIMPSE_TEST_DEVICE (cpu, cuda,
/// cuda:1, emulated), else cpu. What only CPUs have (kernels, instruction sets, threads, weights of 8 and 4
/// bits) is tested there alone.
inline std::string device_name() {
  const char* const set = std::getenv("GLIMPSE_TEST_DEVICE");
  const std::string name = set && *set ? set : "cpu";
  if (name == kEmulated) register_emulated_device();
  return name;
}

inline at::Device test_device() {
  static const at::Device device = [] {
    // The limits are those of float32, of whose mantissa TF32 drops 13 bits.
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
    return at::Device(device_name());
  }();
  return device;
}

/// Known before libtorch is used, as what is skipped elsewhere has to be.
inline bool on_cpu() {
  const char* const set = std::getenv("GLIMPSE_TEST_DEVICE");
  return !set || !*set || std::string(set) == "cpu";
}

/// By how much the limits of differences in float32 grow: cuBLAS and fused attention sum in another order
/// than the CPU does, in tiles that depend on the numbers of rows.
inline double fp32_slack() {
  return test_device().is_cuda() ? 4 : 1;
}

/// The limit for what is computed twice alike. On CUDA index_add_ adds in any order.
inline double repeated() {
  return test_device().is_cuda() ? 1e-4 : 1e-30;
}

}  // namespace glimpse::test
