#include "glimpse/train/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/chart.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/web_page.h"
#include "glimpse/base/web_text.h"
#include "glimpse/train/metrics.h"
#include "glimpse/train/shown_answers.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// A number's values over the run, by name in order of first appearance.
std::vector<Curve> curves_of(const std::vector<StepMetrics>& log) {
  std::vector<Curve> curves;
  std::map<std::string, size_t> place;
  for (const StepMetrics& metrics : log)
    for (const auto& [name, value] : metrics.numbers) {
      const auto [entry, fresh] = place.emplace(name, curves.size());
      if (fresh) curves.push_back({name, {}});
      curves[entry->second].points.emplace_back(static_cast<double>(metrics.step), value);
    }
  return curves;
}

std::string tiles(const std::vector<Curve>& curves) {
  std::string out;
  for (const char* name : {"loss", "reward", "precision", "recall", "f1", "iou", "kept"})
    for (const Curve& curve : curves)
      if (curve.name == name)
        out += concat("<div class='card'><b>", short_number(curve.points.back().second), "</b><span>", name,
                      "</span></div>");
  return out.empty() ? "" : "<div class='tiles'>" + out + "</div>\n";
}

std::string number_table(const std::vector<Curve>& curves) {
  std::string rows;
  for (const Curve& curve : curves) {
    double low = INFINITY, high = -INFINITY;
    for (const auto& [step, value] : curve.points)
      if (std::isfinite(value)) {
        low = std::min(low, value);
        high = std::max(high, value);
      }
    rows += concat("<tr><th>", escape_html(curve.name), "</th>");
    for (const double value : {curve.points.front().second, curve.points.back().second, low, high})
      rows += concat("<td>", short_number(value), "</td>");
    rows += "</tr>\n";
  }
  if (rows.empty()) return "";
  return concat(
      "<div class='card "
      "scroll'><table><tr><th></th><th>first</th><th>last</th><th>lowest</th><th>highest</th></tr>\n",
      rows, "</table></div>\n");
}

struct Plot {
  const char* title;
  std::vector<std::string> names;
  std::optional<double> top;
};

/// Charts of the numbers that belong together, then one for each other number; first those without a part
/// before a '/', then part by part.
std::string charts(const std::vector<Curve>& curves) {
  const std::vector<Plot> plots = {
      {"Losses", {"loss", "le_loss", "loc_loss", "dice", "bce"}, {}},
      {"Kept tokens against the boxes", {"precision", "recall", "f1", "iou", "kept"}, 1},
      {"Learning rate", {"lr"}, {}},
      {"Gradient norm", {"grad_norm"}, {}}};
  std::map<std::string, std::vector<Curve>> parts;
  for (const Curve& curve : curves) {
    const size_t slash = curve.name.find('/');
    const bool whole = slash == std::string::npos;
    parts[whole ? "" : curve.name.substr(0, slash)].push_back(
        {whole ? curve.name : curve.name.substr(slash + 1), curve.points});
  }
  std::string out;
  for (auto& [part, left] : parts) {
    const auto add = [&](const std::string& title, const std::vector<Curve>& together,
                         std::optional<double> top) {
      const std::string chart = draw_chart(part.empty() ? title : title + " (" + part + ")", together, top);
      if (!chart.empty()) out += "<div class='card'>" + chart + "</div>\n";
    };
    for (const Plot& plot : plots) {
      std::vector<Curve> together;
      for (const std::string& name : plot.names)
        if (const auto found = std::ranges::find(left, name, &Curve::name); found != left.end()) {
          together.push_back(std::move(*found));
          left.erase(found);
        }
      add(plot.title, together, plot.top);
    }
    for (const Curve& curve : left) add(curve.name, {curve}, {});
  }
  return out.empty() ? "" : "<div class='grid2'>\n" + out + "</div>\n";
}

std::string picture(int64_t step, const fs::path& file) {
  constexpr size_t most = size_t{32} << 20;
  return concat("<figure><img alt='kept tokens at step ", step, "' src='data:image/png;base64,",
                base64(read_text(file, most)), "'><figcaption>step ", step, "</figcaption></figure>");
}

std::string examples(const fs::path& folder) {
  constexpr size_t shown = 12;
  static const std::regex name("step-([0-9]{1,12})-row-([0-9]{1,12})\\.png");
  std::map<int64_t, std::map<int64_t, fs::path>> rows;  // by row, then step
  if (fs::is_directory(folder))
    for (const auto& entry : fs::directory_iterator(folder)) {
      std::smatch match;
      const std::string file = entry.path().filename().string();
      if (entry.is_regular_file() && std::regex_match(file, match, name))
        rows[std::stoll(match[2])][std::stoll(match[1])] = entry.path();
    }
  std::string out;
  size_t count = 0;
  for (const auto& [row, steps] : rows) {
    if (++count > shown) break;
    const fs::path caption = folder / concat("row-", row, ".txt");
    const std::string text = fs::is_regular_file(caption) ? read_text(caption, 1 << 16) : concat("row ", row);
    out += concat("<div class='card example'><p>", escape_html(text), "</p><div class='pair'>",
                  picture(steps.begin()->first, steps.begin()->second));
    if (steps.size() > 1) out += picture(steps.rbegin()->first, steps.rbegin()->second);
    out += "</div></div>\n";
  }
  return out.empty() ? "" : "<div class='grid2'>\n" + out + "</div>\n";
}

}  // namespace

void write_report(const fs::path& run_dir) {
  const std::vector<StepMetrics> log = read_metrics(run_dir / "metrics.jsonl");
  check(!log.empty(), (run_dir / "metrics.jsonl").string(), ": no log step to report on");
  json settings = json::object();
  if (const fs::path file = run_dir / "train.json"; fs::exists(file)) {
    settings = read_json(file);
    check(settings.is_object(), file.string(), ": expected an object");
  }
  const std::vector<Curve> curves = curves_of(log);
  const std::string run =
      escape_html(fs::absolute(run_dir / ".").lexically_normal().parent_path().filename().string());

  AtomicFile file(run_dir / "report.html");
  file.stream() << web_page(
      run + " - training report", run,
      concat("Training report: step ", log.back().step, ", epoch ", short_number(log.back().epoch)),
      tiles(curves) + section("Curves", charts(curves)) +
          section("Examples, before and after", examples(run_dir / "overlays")) +
          section("Answers to rows that were not trained on, before and after", answers_table(run_dir)) +
          section("Numbers", number_table(curves)) + section("Settings", settings_table(settings)));
  file.commit();
}

}  // namespace glimpse
