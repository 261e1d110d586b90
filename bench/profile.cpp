#include "bench/profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <vector>

#include "glimpse/base/timer.h"
#include "glimpse/nn/device.h"

namespace glimpse::bench {

namespace {

using namespace torch::autograd::profiler;
namespace impl = torch::profiler::impl;

struct Total {
  std::string name;
  double ms = 0;
  int64_t calls = 0;
};

std::vector<Total> totals(const ProfilerResult& result, c10::DeviceType wanted) {
  std::map<std::string, Total> by_name;
  for (const KinetoEvent& event : result.events()) {
    if (event.deviceType() != wanted) continue;
    Total& total = by_name[event.name()];
    total.name = event.name();
    total.ms += static_cast<double>(event.durationNs()) / 1e6;
    ++total.calls;
  }
  std::vector<Total> out;
  for (auto& [name, total] : by_name) out.push_back(std::move(total));
  std::sort(out.begin(), out.end(), [](const Total& a, const Total& b) { return a.ms > b.ms; });
  return out;
}

}  // namespace

void show_profile(const std::string& title, at::Device device, const std::function<void()>& work) {
  const impl::ProfilerConfig config(impl::ProfilerState::KINETO);
  const std::set<impl::ActivityType> activities = {device.is_cpu() ? impl::ActivityType::CPU
                                                                   : impl::ActivityType::CUDA};
  work();
  synchronise(device);
  prepareProfiler(config, activities);
  enableProfiler(config, activities);
  const Timer timer;
  work();
  synchronise(device);
  const double wall = timer.ms();
  const std::unique_ptr<ProfilerResult> result = disableProfiler();
  const std::vector<Total> all = totals(*result, device.type());
  double busy = 0;
  int64_t calls = 0;
  for (const Total& total : all) {
    busy += total.ms;
    calls += total.calls;
  }
  std::printf("profile of %s: %.3f ms of kernels in %.3f ms, %lld calls\n", title.c_str(), busy, wall,
              static_cast<long long>(calls));
  constexpr size_t kShown = 24;
  for (size_t i = 0; i < std::min(all.size(), kShown); ++i)
    std::printf("  %8.3f ms %5.1f %% %6lld x  %.110s\n", all[i].ms, 100 * all[i].ms / busy,
                static_cast<long long>(all[i].calls), all[i].name.c_str());
  std::fflush(stdout);
}

}  // namespace glimpse::bench
