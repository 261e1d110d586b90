#include "glimpse/engine/threads.h"

#include <ATen/Parallel.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "glimpse/engine/cgroup.h"
#include "glimpse/engine/engine.h"

namespace glimpse {

namespace {

// Two threads of one core share its arithmetic units, so only one of them is counted.
int physical_cores() {
  cpu_set_t own;
  if (::sched_getaffinity(0, sizeof own, &own) != 0) return 0;
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &own)) continue;
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    int package = 0, core = cpu;
    std::ifstream(folder + "physical_package_id") >> package;
    if (!(std::ifstream(folder + "core_id") >> core)) core = cpu;
    cores.emplace(package, core);
  }
  return static_cast<int>(cores.size());
}

}  // namespace

std::optional<double> cpu_quota(const std::string& text) {
  std::istringstream in(text);
  double quota = 0, period = 0;
  if (!(in >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

std::optional<double> cgroup_cpus(const std::filesystem::path& root) {
  std::optional<double> least;
  for_each_cgroup(root, "cpu", [&](const Cgroup& group) {
    const auto own =
        cpu_quota(group.unified ? group.text("cpu.max")
                                : group.text("cpu.cfs_quota_us") + " " + group.text("cpu.cfs_period_us"));
    if (own) least = std::min(*own, least.value_or(*own));
  });
  return least;
}

int default_threads() {
  const int cores = physical_cores();
  const auto quota = cgroup_cpus();
  return quota ? std::min(cores, static_cast<int>(std::ceil(*quota))) : cores;
}

void set_threads(int count) {
  if (count == 0 && !std::getenv("OMP_NUM_THREADS")) count = default_threads();
  if (count > 0) at::set_num_threads(count);
}

}  // namespace glimpse
