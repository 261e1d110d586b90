#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace glimpse::serve {

/// What is counted, in Prometheus' text format. The names are vLLM's under another prefix, so that dashboards
/// need little change. May be used by any thread.
class Metrics {
 public:
  explicit Metrics(std::string model);

  void add(const std::string& counter, double value = 1, const std::string& labels = "");
  void observe(const std::string& histogram, double value);
  /// `gauges`: names and their values now.
  std::string text(const std::vector<std::pair<std::string, double>>& gauges) const;

 private:
  struct Histogram {
    std::vector<uint64_t> counts;
    double sum = 0;
    uint64_t count = 0;
  };
  const std::string model_;
  mutable std::mutex mutex_;
  std::map<std::string, std::map<std::string, double>> counters_;  // by name and labels
  std::map<std::string, Histogram> histograms_;
};

}  // namespace glimpse::serve
