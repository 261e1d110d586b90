// How many threads a machine, or the part of it that one may use, is good for.
#include "glimpse/engine/threads.h"

#include <unistd.h>

#include <fstream>

#include "builtin.h"
#include "engine/machine_files.h"
#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
namespace fs = std::filesystem;

namespace {

using test::MachineFiles;

std::optional<double> cpus(const MachineFiles& root) {
  return cgroup_cpus(root.dir());
}

}  // namespace

TEST_CASE("a quota and its period") {
  CHECK(cpu_quota("200000 100000\n") == 2.0);
  CHECK(cpu_quota("50000 100000") == 0.5);
  CHECK(cpu_quota("150000\n 100000\n") == 1.5);
  for (const char* none : {"", "max 100000\n", "-1 100000", "100000", "0 100000", "100000 0", "a b"})
    CHECK(!cpu_quota(none).has_value());
}

TEST_CASE("version 2: the least quota on the way up") {
  MachineFiles root;
  CHECK(!cpus(root).has_value());
  root.with("proc/self/cgroup", "0::/user/job\n");
  CHECK(!cpus(root).has_value());
  root.with("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  CHECK(!cpus(root).has_value());
  root.with("sys/fs/cgroup/user/cpu.max", "300000 100000\n");
  CHECK(cpus(root) == 3.0);
  root.with("sys/fs/cgroup/user/job/cpu.max", "400000 100000\n");
  CHECK(cpus(root) == 3.0);
  root.with("sys/fs/cgroup/cpu.max", "100000 50000\n");
  CHECK(cpus(root) == 2.0);
}

TEST_CASE("version 1, and a path that only the host knows") {
  MachineFiles root;
  root.with("proc/self/cgroup", "5:memory:/docker/12\n4:cpu,cpuacct:/docker/12\n1:name=systemd:/\n");
  root.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
      .with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(!cpus(root).has_value());
  root.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
  CHECK(cpus(root) == 2.5);
}

TEST_CASE("defaults fit this machine; kernels are chosen once") {
  CHECK(default_threads() >= 1);
  CHECK(default_threads() <= static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  test::tiny_engine();
  EngineOptions options{.model = test::tiny_dir() / "model"};
  CHECK(Engine::load(options) != nullptr);
  options.kernels = "scalar";
  CHECK_THROWS_WITH_AS(Engine::load(options),
                       "kernels: scalar was asked for, but an engine of this process was loaded with auto; "
                       "all of them share one choice",
                       Error);
}
