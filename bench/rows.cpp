#include "bench/rows.h"

#include <malloc.h>

#include <cstdio>
#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse::bench {

namespace {

using nlohmann::json;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value >= 1000 ? "%.0f" : value >= 10 ? "%.1f" : "%.3f", value);
  return text;
}

bool more_is_better(const std::string& unit) {
  return unit.ends_with("/s") || unit == "x";
}

std::string goal_text(const Row& row) {
  if (!row.goal) return "";
  const double bound = row.goal->bound;
  return concat(row.goal->at_most ? "at most " : "at least ",
                row.goal->of_share ? concat(100 * bound, " %") : concat(bound), ": ",
                !row.met()   ? "?"
                : *row.met() ? "ok"
                             : "MISSED");
}

json goal_json(const Row& row) {
  json goal = {{row.goal->at_most ? "at_most" : "at_least", row.goal->bound},
               {"of", row.goal->of_share ? "share_of_limit" : "value"}};
  if (row.met()) goal["met"] = *row.met();
  return goal;
}

json row_json(const Row& row) {
  json out = {{"name", row.name}, {"value", row.value}, {"unit", row.unit}, {"peers", row.peers}};
  out["share_of_limit"] = row.share ? json(*row.share) : json();
  if (row.median) out["median"] = *row.median;
  if (!row.note.empty()) out["note"] = row.note;
  if (row.goal) out["goal"] = goal_json(row);
  return out;
}

}  // namespace

void say(const std::string& progress) {
  std::fprintf(stderr, "bench: %s\n", progress.c_str());
}

std::optional<bool> Row::met() const {
  if (!goal || (goal->of_share && !share)) return std::nullopt;
  const double reached = goal->of_share ? *share : value;
  return goal->at_most ? reached <= goal->bound : reached >= goal->bound;
}

void Rows::continue_from(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return;
  earlier_ = read_json(file);
  check(earlier_.is_array(), file.string(), ": expected the list of rows that an earlier run wrote");
}

std::optional<double> Rows::earlier(const std::string& name) const {
  for (const json& row : earlier_)
    if (row.at("name") == name) return row.at("value").get<double>();
  return std::nullopt;
}

void Rows::add(Row row) {
  row.name = prefix_ + row.name;
  rows_.push_back(std::move(row));
}

void Rows::add_peer(const std::string& peer, const std::filesystem::path& file) {
  for (const json& theirs : read_json(file))
    for (Row& row : rows_)
      if (theirs.at("name") == row.name && theirs.at("unit") == row.unit)
        row.peers[peer] = theirs.at("value");
}

void Rows::print() const {
  constexpr const char* kLine = "%-34s%11s%11s  %-12s%9s  %-23s  %-26s%8s  %s\n";
  if (earlier_.empty())
    std::printf(kLine, "", "best", "median", "unit", "of limit", "goal", "peer", "ratio", "");
  for (const Row& row : rows_) {
    std::vector<std::pair<std::string, std::string>> peers;
    for (const auto& [name, value] : row.peers)
      peers.emplace_back(name + " " + number(value),
                         number(more_is_better(row.unit) ? row.value / value : value / row.value) + "x");
    if (peers.empty()) peers.emplace_back();
    const std::string share = row.share ? number(100 * *row.share) + " %" : "";
    std::printf(kLine, row.name.c_str(), number(row.value).c_str(),
                row.median ? number(*row.median).c_str() : "", row.unit.c_str(), share.c_str(),
                goal_text(row).c_str(), peers[0].first.c_str(), peers[0].second.c_str(), row.note.c_str());
    for (size_t i = 1; i < peers.size(); ++i)
      std::printf(kLine, "", "", "", "", "", "", peers[i].first.c_str(), peers[i].second.c_str(), "");
  }
}

void Rows::write(const std::filesystem::path& file) const {
  json all = earlier_;
  for (const Row& row : rows_) all.push_back(row_json(row));
  std::ofstream out(file);
  out << all.dump(1) << '\n';
  check(out.flush().good(), file.string(), ": cannot be written");
}

Memory Memory::now() {
  Memory memory;
  std::ifstream status("/proc/self/status");
  for (std::string key; status >> key;) {
    double kib = 0;
    if (key == "VmHWM:" && status >> kib) memory.peak_mib = kib / 1024;
    if (key == "RssAnon:" && status >> kib) memory.own_mib = kib / 1024;
    if (key == "RssFile:" && status >> kib) memory.files_mib = kib / 1024;
    status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return memory;
}

void Memory::reset_peak() {
  std::ofstream("/proc/self/clear_refs") << 5;
}

void Memory::trim_and_reset_peak() {
  malloc_trim(0);
  reset_peak();
}

}  // namespace glimpse::bench
