#pragma once

#include "glimpse/eval/machine.h"

namespace glimpse::test {

/// Whether measuring memory says something: sanitizers keep much of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasuresMemory = false;
#else
constexpr bool kMeasuresMemory = true;
#endif

/// MiB that this process grows by at its peak while `run` works; 0 where the kernel does not tell.
template <class Run>
double grown_mib(const Run& run) {
  const PeakMemory peak;
  run();
  return peak.mib().value_or(0);
}

}  // namespace glimpse::test
