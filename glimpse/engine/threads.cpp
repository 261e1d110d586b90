#include <ATen/Parallel.h>
#include <sched.h>

#include <cstdlib>
#include <fstream>
#include <set>

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

void set_threads(int count) {
  if (count == 0 && !std::getenv("OMP_NUM_THREADS")) count = physical_cores();
  if (count > 0) at::set_num_threads(count);
}

}  // namespace glimpse
