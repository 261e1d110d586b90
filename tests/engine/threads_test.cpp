// How many threads a machine, or the part of it that one may use, is good for.
#include "glimpse/engine/threads.h"

#include <unistd.h>

#include <fstream>

#include "builtin.h"
#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
namespace fs = std::filesystem;

namespace {

// A folder with the files of /proc and /sys that tell a cgroup's quota.
class Root {
 public:
  Root() : dir_(fs::temp_directory_path() / ("glimpse_cgroup_" + std::to_string(getpid()))) {}
  ~Root() { fs::remove_all(dir_); }
  Root(const Root&) = delete;
  Root& with(const std::string& file, const std::string& text) {
    fs::create_directories((dir_ / file).parent_path());
    std::ofstream(dir_ / file) << text;
    return *this;
  }
  std::optional<double> cpus() const { return cgroup_cpus(dir_); }

 private:
  const fs::path dir_;
};

}  // namespace

TEST_CASE("a quota and its period") {
  CHECK(cpu_quota("200000 100000\n") == 2.0);
  CHECK(cpu_quota("50000 100000") == 0.5);
  CHECK(cpu_quota("150000\n 100000\n") == 1.5);
  for (const char* none : {"", "max 100000\n", "-1 100000", "100000", "0 100000", "100000 0", "a b"})
    CHECK(!cpu_quota(none).has_value());
}

TEST_CASE("version 2: the least quota on the way up") {
  Root root;
  CHECK(!root.cpus().has_value());
  root.with("proc/self/cgroup", "0::/user/job\n");
  CHECK(!root.cpus().has_value());
  root.with("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  CHECK(!root.cpus().has_value());
  root.with("sys/fs/cgroup/user/cpu.max", "300000 100000\n");
  CHECK(root.cpus() == 3.0);
  root.with("sys/fs/cgroup/user/job/cpu.max", "400000 100000\n");
  CHECK(root.cpus() == 3.0);
  root.with("sys/fs/cgroup/cpu.max", "100000 50000\n");
  CHECK(root.cpus() == 2.0);
}

TEST_CASE("version 1, and a path that only the host knows") {
  Root root;
  root.with("proc/self/cgroup", "5:memory:/docker/12\n4:cpu,cpuacct:/docker/12\n1:name=systemd:/\n");
  root.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
      .with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(!root.cpus().has_value());
  root.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
  CHECK(root.cpus() == 2.5);
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
