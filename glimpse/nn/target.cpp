#include "glimpse/nn/target.h"

#include <hwy/targets.h>

#include <map>

#include "glimpse/base/check.h"

namespace glimpse {

void use_kernels(const std::string& name) {
  // The better an instruction set, the lower its bit.
  struct Level {
    int64_t best, any;
  };
  static const std::map<std::string, Level> levels = {
      {"avx512", {1, HWY_AVX3 | HWY_AVX3_DL}},
      {"avx2", {HWY_AVX2, HWY_AVX2}},
      {"sse4", {HWY_SSE4, HWY_SSE4}},
      {"scalar", {HWY_EMU128, HWY_EMU128 | HWY_SCALAR}},
  };
  int64_t targets = hwy::SupportedTargets();
  if (name != "auto") {
    const auto level = levels.find(name);
    check(level != levels.end(), "kernels: expected auto, avx512, avx2, sse4 or scalar, got '", name, "'");
    targets &= ~(level->second.best - 1);
    check((targets & level->second.any) != 0, "kernels: this CPU does not have ", name);
  }
  hwy::GetChosenTarget().Update(targets);
}

}  // namespace glimpse
