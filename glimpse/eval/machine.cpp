#include "glimpse/eval/machine.h"

#include <ATen/Parallel.h>
#include <malloc.h>

#include <algorithm>
#include <fstream>
#include <thread>

namespace glimpse {

namespace {

// The value after "key:" in a file of the proc file system, or "".
std::string proc_value(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t value = line.find_first_not_of(" \t", line.find(':') + 1);
    return value == line.npos ? "" : line.substr(value);
  }
  return "";
}

double kib(const std::string& text) {
  return text.empty() ? 0 : std::strtod(text.c_str(), nullptr);
}

}  // namespace

nlohmann::json machine_facts() {
  return {{"processor", proc_value("/proc/cpuinfo", "model name")},
          {"logical_cores", std::thread::hardware_concurrency()},
          {"threads", at::get_num_threads()},
          {"memory_gib", std::round(kib(proc_value("/proc/meminfo", "MemTotal")) / 1048576)}};
}

PeakMemory::PeakMemory() {
  malloc_trim(0);
  std::ofstream file("/proc/self/clear_refs");
  if (file << 5 << std::flush) start_mib_ = kib(proc_value("/proc/self/status", "VmRSS")) / 1024;
}

std::optional<double> PeakMemory::mib() const {
  if (!start_mib_) return {};
  return std::max(0.0, kib(proc_value("/proc/self/status", "VmHWM")) / 1024 - *start_mib_);
}

}  // namespace glimpse
