#include "glimpse/train/metrics.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/rows.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

using nlohmann::ordered_json;

std::string to_line(const StepMetrics& metrics) {
  ordered_json object = {{"step", metrics.step}, {"epoch", metrics.epoch}};
  for (const auto& [name, value] : metrics.numbers) object[name] = value;
  return object.dump() + "\n";
}

StepMetrics from_line(const std::string& text) {
  const ordered_json object = ordered_json::parse(text, nullptr, false);
  check(object.is_object() && object.contains("step") && object["step"].is_number_integer(),
        "expected a JSON object with a whole number \"step\"");
  constexpr double last = 1e15;
  const double step = object["step"].get<double>();
  check(step >= 0 && step <= last, "step ", step, " is outside [0, ", last, "]");
  StepMetrics metrics{.step = object["step"].get<int64_t>()};
  for (const auto& [name, value] : object.items()) {
    check(value.is_number() || value.is_null(), "\"", name, "\" is no number");
    const double number = value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
    if (name == "epoch")
      metrics.epoch = number;
    else if (name != "step")
      metrics.add(name, number);
  }
  return metrics;
}

/// `path`, after its steps later than `last_step` and a torn line were dropped.
fs::path cut_after(const fs::path& path, int64_t last_step) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  check(!error, "cannot make the folder ", path.parent_path().string(), ": ", error.message());
  std::vector<StepMetrics> before;
  if (last_step >= 0 && fs::exists(path)) before = read_metrics(path);
  AtomicFile file(path);
  for (const StepMetrics& metrics : before)
    if (metrics.step <= last_step) file.stream() << to_line(metrics);
  file.commit();
  return path;
}

}  // namespace

void StepMetrics::add(const MaskScore& score, const std::string& prefix) {
  add(prefix + "precision", score.precision());
  add(prefix + "recall", score.recall());
  add(prefix + "f1", score.f1());
  add(prefix + "iou", score.iou());
  add(prefix + "kept", score.kept());
}

std::vector<StepMetrics> read_metrics(const fs::path& file) {
  std::vector<StepMetrics> all;
  std::string problem;
  visit_lines(file, [&](const std::string& text, size_t line) {
    check(problem.empty(), problem);
    try {
      all.push_back(from_line(text));
    } catch (const Error& error) {
      problem = concat(file.string(), ":", line, ": ", error.what());
    }
    return true;
  });
  // Only what stands at the very end can have been torn.
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  const bool torn = in.tellg() > 0 && in.seekg(-1, std::ios::end).get() != '\n';
  check(problem.empty() || torn, problem);
  return all;
}

MetricsLog::MetricsLog(const fs::path& run_dir, int64_t last_step)
    : path_(cut_after(run_dir / "metrics.jsonl", last_step)),
      events_(run_dir, last_step + 1),
      out_(path_, std::ios::app) {
  check(out_.is_open(), path_.string(), ": cannot be written");
}

void MetricsLog::write(const StepMetrics& metrics) {
  out_ << to_line(metrics) << std::flush;
  check(out_.good(), path_.string(), ": writing failed (disk full?)");
  events_.scalar("train/epoch", metrics.epoch, metrics.step);
  for (const auto& [name, value] : metrics.numbers)
    events_.scalar(name.find('/') == name.npos ? "train/" + name : name, value, metrics.step);
  events_.flush();
}

}  // namespace glimpse
