#pragma once

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
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

/// What a row should reach.
struct Goal {
  double bound = 0;
  bool at_most = false;   ///< else at least
  bool of_share = false;  ///< the row's share of the limit, else its value
};
constexpr Goal at_least(double value) {
  return {value};
}
constexpr Goal at_most(double value) {
  return {value, true};
}
constexpr Goal share_at_least(double share) {
  return {share, false, true};
}

/// One line of the result.
struct Row {
  std::string name;
  double value = 0;  ///< the best round
  std::string unit;
  std::optional<double> median = {};
  std::optional<double> share = {};          ///< value's share of the measured limit, 1 = at the limit
  std::map<std::string, double> peers = {};  ///< the same thing done by others
  std::string note = {};
  std::optional<Goal> goal = {};

  /// Whether the goal was reached; nothing without one, or where its limit was not measured.
  std::optional<bool> met() const;
};

/// Tells on stderr how far a run has come: large shapes take minutes before the table.
void say(const std::string& progress);

/// Where results are collected.
class Rows {
 public:
  /// The rows go behind those of an earlier run of the same benchmark, if that file is there.
  void continue_from(const std::filesystem::path& file);
  /// The value of a row of the earlier run; nothing when there is none.
  std::optional<double> earlier(const std::string& name) const;
  /// Is put before the names of the rows that are added from now on.
  void set_prefix(std::string prefix) { prefix_ = std::move(prefix); }

  void add(Row row);
  /// Adds a peer's numbers ([{name, value, unit}]) to the rows of the same name and unit.
  void add_peer(const std::string& peer, const std::filesystem::path& file);
  /// The new rows, below the earlier ones if there are any. Peers stand with their ratio: above 1 means that
  /// glimpse is better.
  void print() const;
  /// The earlier rows and the new ones.
  void write(const std::filesystem::path& file) const;

 private:
  nlohmann::json earlier_ = nlohmann::json::array();
  std::string prefix_;
  std::vector<Row> rows_;
};

/// Memory of this process, from /proc/self/status.
struct Memory {
  double peak_mib = 0;   ///< largest resident size since the last reset
  double own_mib = 0;    ///< resident now, mapped files left out
  double files_mib = 0;  ///< mapped files that are resident now: weights and libraries

  static Memory now();
  /// Starts a new peak, where the kernel allows it.
  static void reset_peak();
  /// The same after freed memory that the allocator keeps was given back. Takes time, so not inside a timing.
  static void trim_and_reset_peak();
};

}  // namespace glimpse::bench
