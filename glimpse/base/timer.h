#pragma once

#include <chrono>

namespace glimpse {

/// Wall time since construction or the last restart().
class Timer {
 public:
  double ms() const { return std::chrono::duration<double, std::milli>(Clock::now() - start_).count(); }
  double restart() {
    const double elapsed = ms();
    start_ = Clock::now();
    return elapsed;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

}  // namespace glimpse
