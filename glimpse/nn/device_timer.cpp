#include "glimpse/nn/device_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace glimpse {

c10::Event DeviceTimer::mark() const {
  const c10::impl::VirtualGuardImpl guard(device_.type());
  c10::Event event(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  event.record(guard.getStream(device_.has_index() ? device_ : guard.getDevice()));
  return event;
}

void DeviceTimer::start() {
  if (device_.is_cuda())
    open_.emplace(mark());
  else
    timer_.restart();
}

void DeviceTimer::stop() {
  if (!device_.is_cuda()) {
    ms_ += timer_.ms();
    return;
  }
  parts_.emplace_back(std::move(*open_), mark());
  open_.reset();
}

double DeviceTimer::take() {
  for (const auto& [begin, end] : parts_) ms_ += begin.elapsedTime(end);
  parts_.clear();
  return std::exchange(ms_, 0);
}

}  // namespace glimpse
