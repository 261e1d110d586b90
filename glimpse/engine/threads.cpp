#include "glimpse/engine/threads.h"

#include <ATen/Parallel.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

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

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
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
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // ID:CONTROLLERS:PATH; version 2 names none
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::filesystem::path mount = root / "sys/fs/cgroup" / (unified ? "" : "cpu");
    // In a container the path may be the host's, while what is mounted begins with the own group.
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      const auto file = [&](const char* name) { return text_of(mount / group.relative_path() / name); };
      const auto own =
          cpu_quota(unified ? file("cpu.max") : file("cpu.cfs_quota_us") + " " + file("cpu.cfs_period_us"));
      if (own) least = std::min(*own, least.value_or(*own));
      if (!group.has_relative_path()) break;
    }
  }
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
