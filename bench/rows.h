#pragma once

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace glimpse::bench {

/// Times of one thing over the rounds, in ms.
struct Samples {
  std::vector<double> values;

  void add(double ms) { values.push_back(ms); }
  double best() const { return *std::min_element(values.begin(), values.end()); }
  double median() const {
    std::vector<double> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
  }
};

/// One line of the result.
struct Row {
  std::string name;
  double value = 0;  ///< the best round
  std::string unit;
  std::optional<double> median = {};
  std::optional<double> share = {};          ///< value's share of the measured limit, 1 = at the limit
  std::map<std::string, double> peers = {};  ///< the same thing done by others
  std::string note = {};
};

/// Tells on stderr how far a run has come: large shapes take minutes before the table.
void say(const std::string& progress);

/// Where results are collected.
class Rows {
 public:
  void add(Row row) { rows_.push_back(std::move(row)); }
  /// Adds a peer's numbers ([{name, value, unit}]) to the rows of the same name and unit.
  void add_peer(const std::string& peer, const std::filesystem::path& file);
  /// Peers stand with their ratio: above 1 means that glimpse is better.
  void print() const;
  void write(const std::filesystem::path& file) const;

 private:
  std::vector<Row> rows_;
};

/// Memory of this process, from /proc/self/status.
struct Memory {
  double peak_mib = 0;   ///< largest resident size since the last reset
  double files_mib = 0;  ///< mapped files that are resident now: weights and libraries

  static Memory now();
  /// Gives freed memory back and starts a new peak, where the kernel allows it.
  static void reset_peak();
};

}  // namespace glimpse::bench
