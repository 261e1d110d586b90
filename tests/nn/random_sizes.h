#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>

namespace glimpse::test {

/// Draws sizes, the same on every machine; every power of two is as likely as the next.
class RandomSizes {
 public:
  explicit RandomSizes(uint64_t seed) : generator_(seed) {}
  /// From 1 to `most`.
  int64_t operator()(int64_t most) {
    const auto powers = static_cast<uint64_t>(std::bit_width(static_cast<uint64_t>(most)));
    const int64_t below = int64_t{2} << (generator_() % powers);
    return 1 + static_cast<int64_t>(generator_() % static_cast<uint64_t>(std::min(most, below - 1)));
  }

 private:
  std::mt19937_64 generator_;
};

}  // namespace glimpse::test
