#pragma once

#include <ATen/ATen.h>
#include <hwy/highway.h>

#include <set>
#include <string>

#include "glimpse/nn/gemm.h"
#include "glimpse/nn/kernels.h"

#undef CHECK
#include <doctest/doctest.h>

namespace glimpse::test {

/// Calls `body` once per instruction set that was compiled and that this CPU has, with the same random seed.
/// `target_name` tells which one is in use; several may be the same to a file that has no code for one.
template <class Body>
void on_every_target(const char* (*target_name)(), Body body) {
  std::set<std::string> names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::GetChosenTarget().Update(target);
    const std::string name = target_name();
    CAPTURE(name);
    CHECK(names.insert(name).second);
    at::manual_seed(7);
    body();
  }
  CHECK(names.size() > 1);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

/// Whether products of bf16 pairs (nn/gemm.h) can run: by instructions, or emulated without AVX-512.
inline bool can_pair() {
  return gemm::has_pairs() || std::string(kernels::target_name()).find("AVX3") == std::string::npos;
}

}  // namespace glimpse::test
