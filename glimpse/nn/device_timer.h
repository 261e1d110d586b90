#pragma once

#include <c10/core/Event.h>

#include <optional>
#include <utility>
#include <vector>

#include "glimpse/base/timer.h"

namespace glimpse {

/// Adds up the time of some parts of a device's work. On CUDA they are marked in the stream of work, so that
/// the host does not wait for the device at their beginnings and ends; elsewhere it is wall time.
class DeviceTimer {
 public:
  explicit DeviceTimer(at::Device device) : device_(device) {}
  void start();
  void stop();
  /// ms of all parts since the last call. The device must have ended them (synchronise()).
  double take();

 private:
  c10::Event mark() const;

  at::Device device_;
  Timer timer_;
  double ms_ = 0;
  std::vector<std::pair<c10::Event, c10::Event>> parts_;
  std::optional<c10::Event> open_;  // the beginning of a part that has not ended
};

}  // namespace glimpse
