#pragma once

#include <ATen/ATen.h>
#include <hwy/highway.h>

#include <set>
#include <string>

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

}  // namespace glimpse::test
