#pragma once

#include <atomic>
#include <cstdint>

namespace glimpse {

/// Arithmetic that products of matrices really do, for checking formulas. A multiply-add is two operations.
namespace flop_count {

inline std::atomic<bool> on = false;
inline std::atomic<int64_t> sum = 0;

/// Notes `operations` if somebody counts. Called where a product happens, with the shapes it has there.
inline void add(int64_t operations) {
  if (on.load(std::memory_order_relaxed)) sum.fetch_add(operations, std::memory_order_relaxed);
}

}  // namespace flop_count

/// Counts all products of this process while it lives; one at a time.
class FlopCount {
 public:
  FlopCount() {
    flop_count::sum = 0;
    flop_count::on = true;
  }
  ~FlopCount() { flop_count::on = false; }
  FlopCount(const FlopCount&) = delete;
  /// Operations since construction or the last take().
  int64_t take() { return flop_count::sum.exchange(0); }
};

}  // namespace glimpse
