#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace glimpse {

/// The number of CPUs that a quota of CPU time is worth, as cgroups write it: "QUOTA PERIOD", both in
/// microseconds. Nothing if there is no limit ("max", -1) or the text is something else.
std::optional<double> cpu_quota(const std::string& text);

/// The least quota of this process's cgroup (version 2 or 1) and those above it; `root` is where /proc and
/// /sys are.
std::optional<double> cgroup_cpus(const std::filesystem::path& root = "/");

/// A thread per physical core that this process may run on, but no more than its cgroup's quota lets run.
int default_threads();

}  // namespace glimpse
