#include "glimpse/nn/device.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace glimpse {

namespace {

c10::DeviceIndex index_of(at::Device device) {
  return device.has_index() ? device.index() : c10::impl::VirtualGuardImpl(device.type()).getDevice().index();
}

c10::CachingAllocator::Stat allocated(at::Device device) {
  return c10::getDeviceAllocator(device.type())
      ->getDeviceStats(index_of(device))
      .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

}  // namespace

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  // From pageable memory a copy would wait for all that was started before it.
  return (device.is_cuda() ? host.pin_memory() : host).to(device, /*non_blocking=*/true);
}

void synchronise(at::Device device) {
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(index_of(device));
}

size_t device_bytes(at::Device device) {
  return device.is_cpu() ? 0 : static_cast<size_t>(allocated(device).current);
}

size_t peak_device_bytes(at::Device device) {
  return device.is_cpu() ? 0 : static_cast<size_t>(allocated(device).peak);
}

void reset_peak_bytes(at::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->resetPeakStats(index_of(device));
}

}  // namespace glimpse
