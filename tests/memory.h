#pragma once

#include "glimpse/eval/machine.h"

namespace glimpse::test {

/// Whether measuring memory says something: sanitizers keep much of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasuresMemory = false;
#else
constexpr bool kMeasuresMemory = true;
#endif

/// MiB that the peak of resident memory rises by while `run` works.
template <class Run>
double grown_mib(const Run& run) {
  reset_peak_resident();
  const double before = peak_resident_mib();
  run();
  return peak_resident_mib() - before;
}

}  // namespace glimpse::test
