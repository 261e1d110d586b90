#include "glimpse/serve/metrics.h"

#include <algorithm>
#include <sstream>

namespace glimpse::serve {

namespace {

struct Described {
  const char *name, *help;
};
constexpr Described kCounters[] = {
    {"prompt_tokens_total", "Tokens of prompts, visual ones before pruning included"},
    {"generation_tokens_total", "Tokens of answers"},
    {"visual_tokens_total", "Visual tokens of prompts"},
    {"visual_tokens_kept_total", "Visual tokens that pruning kept"},
    {"request_success_total", "Answers by the reason why they ended"},
    {"request_failure_total", "Requests that got an error, by status"},
    {"prefix_cache_queries", "Tokens of prompts with images, looked up in the cache of image prefixes"},
    {"prefix_cache_hits", "Tokens that a cached image prefix saved"},
};
constexpr Described kGauges[] = {
    {"num_requests_running", "Requests that are answered"},
    {"num_requests_waiting", "Requests that wait"},
    {"kv_cache_usage_perc", "KV cache memory set aside, as part of the bound (0 without one)"},
    {"kv_cache_bytes", "KV cache memory in use"},
    {"connections", "Open connections"},
};
struct Scale {
  const char *name, *help;
  std::vector<double> limits;
};
const std::vector<Scale>& scales() {
  static const std::vector<double> seconds = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                              1,     2.5,   5,    10,    30,   60,  120};
  static const std::vector<Scale> all = {
      {"time_to_first_token_seconds", "From the request to its first token", seconds},
      {"inter_token_latency_seconds", "Between two tokens of an answer", seconds},
      {"e2e_request_latency_seconds", "From the request to the end of its answer", seconds},
      {"request_queue_time_seconds", "From the request to the start of its prefill", seconds},
      {"visual_tokens_kept_share",
       "Part of a request's visual tokens that was kept",
       {0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1}},
  };
  return all;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text)
    out += c == '\n' ? "\\n" : c == '"' ? "\\\"" : c == '\\' ? "\\\\" : std::string(1, c);
  return out;
}

}  // namespace

Metrics::Metrics(std::string model) : model_(std::move(model)) {
  for (const Described& counter : kCounters)
    if (std::string_view(counter.name).find("request_") != 0) counters_[counter.name][""] = 0;
  for (const Scale& scale : scales()) histograms_[scale.name].counts.resize(scale.limits.size());
}

void Metrics::add(const std::string& counter, double value, const std::string& labels) {
  const std::lock_guard lock(mutex_);
  counters_[counter][labels] += value;
}

void Metrics::observe(const std::string& histogram, double value) {
  const auto scale = std::find_if(scales().begin(), scales().end(),
                                  [&](const Scale& each) { return each.name == histogram; });
  const std::lock_guard lock(mutex_);
  Histogram& into = histograms_[histogram];
  for (size_t i = 0; i < scale->limits.size(); ++i)
    if (value <= scale->limits[i]) ++into.counts[i];
  into.sum += value;
  ++into.count;
}

std::string Metrics::text(const std::vector<std::pair<std::string, double>>& gauges) const {
  std::ostringstream out;
  out.precision(12);
  const std::string model = "model_name=\"" + escaped(model_) + "\"";
  const auto head = [&](const std::string& name, const std::string& help, const char* type) {
    out << "# HELP glimpse:" << name << " " << help << "\n# TYPE glimpse:" << name << " " << type << "\n";
  };
  const std::lock_guard lock(mutex_);
  for (const Described& gauge : kGauges)
    for (const auto& [name, value] : gauges)
      if (name == gauge.name) {
        head(name, gauge.help, "gauge");
        out << "glimpse:" << name << "{" << model << "} " << value << "\n";
      }
  for (const Described& counter : kCounters) {
    head(counter.name, counter.help, "counter");
    if (const auto found = counters_.find(counter.name); found != counters_.end())
      for (const auto& [labels, value] : found->second)
        out << "glimpse:" << counter.name << "{" << model << (labels.empty() ? "" : ",") << labels << "} "
            << value << "\n";
  }
  for (const Scale& scale : scales()) {
    head(scale.name, scale.help, "histogram");
    const Histogram& of = histograms_.at(scale.name);
    const std::string name = std::string("glimpse:") + scale.name;
    for (size_t i = 0; i < scale.limits.size(); ++i)
      out << name << "_bucket{" << model << ",le=\"" << scale.limits[i] << "\"} " << of.counts[i] << "\n";
    out << name << "_bucket{" << model << ",le=\"+Inf\"} " << of.count << "\n"
        << name << "_sum{" << model << "} " << of.sum << "\n"
        << name << "_count{" << model << "} " << of.count << "\n";
  }
  return out.str();
}

}  // namespace glimpse::serve
