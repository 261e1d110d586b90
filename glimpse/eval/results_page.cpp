#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "glimpse/base/chart.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/web_page.h"
#include "glimpse/base/web_text.h"
#include "glimpse/engine/kept_pictures.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/eval/results.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/image/overlay.h"
#include "glimpse/image/resize.h"

namespace glimpse {

namespace {

using nlohmann::json;

constexpr const char* kStyle = R"css(
td:nth-child(2), th:nth-child(2) { text-align: left; }
tr.first > * { border-top: 2px solid var(--line); }
td.best { font-weight: 700; }
p.soft { margin-bottom: .6rem; }
.results th, .results td { padding: .2rem .5rem; vertical-align: bottom; }
.results td, .results th:first-child { white-space: nowrap; }
.settings td:nth-child(2), .settings th:nth-child(2) { white-space: normal; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin-top: .8rem; }
.shots figure { margin: 0; min-width: 0; }
.shots img { width: 100%; display: block; border-radius: 6px; }
.shots figure.wide { grid-column: span 3; }
.shots figcaption { font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; }
.shots b { color: var(--text); font-weight: 600; }
.right { color: var(--c2); } .wrong { color: var(--c1); }
.row, .grid2 { margin-bottom: .8rem; }
)css";

std::string budget_name(const json& cell) {
  const std::string budget = cell.at("budget"), method = cell.at("method");
  if (budget == "own") return method == "none" ? "all" : "own rule";
  if (budget == "from") return "another run's";
  return parse_budget(budget)->count ? budget + " tokens" : budget;
}

std::string name_of(const json& cell) {
  return escape_html(cell.at("method").get<std::string>());
}

// A table of the cells: columns are a heading and what it shows of a cell ("" where it has nothing).
using Column = std::pair<std::string, std::function<std::string(const json&)>>;

std::string table(const std::vector<const json*>& cells, const std::vector<Column>& columns) {
  std::string out = "<div class='card scroll'><table class='results'>\n<tr><th>method</th><th>budget</th>";
  for (const auto& [heading, show] : columns) out += "<th>" + escape_html(heading) + "</th>";
  out += "</tr>\n";
  std::string before;
  for (const json* cell : cells) {
    out += concat("<tr", name_of(*cell) != before ? " class='first'" : "", "><th>", name_of(*cell),
                  "</th><td>", budget_name(*cell), "</td>");
    before = name_of(*cell);
    for (const auto& [heading, show] : columns) out += "<td>" + show(*cell) + "</td>";
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

Column share(const std::string& heading, std::function<json(const json&)> get, int places = 3) {
  return {heading, [get, places](const json& cell) { return fixed(get(cell), places); }};
}

std::string score_table(const std::vector<const json*>& cells, const json& task) {
  std::vector<Column> columns = {
      share(
          "kept %", [](const json& c) { return json(100 * c.at("all").at("kept").get<double>()); }, 1),
      share("average", [](const json& c) { return c.at("average"); }),
      {"all rows", [](const json& c) {
         const json& all = c.at("all");
         return fixed(all.at("score"), 3) + " ± " + fixed(all.at("score_error"), 3);
       }}};
  for (const json& set : task.at("sets"))
    columns.push_back(share(set, [set](const json& c) {
      return member(member(c.at("sets"), set.get<std::string>().c_str()), "score");
    }));
  for (const char* name : {"precision", "recall", "f1", "iou"})
    columns.push_back(share(name, [name](const json& c) { return member(c.at("all").at("mask"), name); }));
  return table(cells, columns);
}

std::string cost_table(const std::vector<const json*>& cells) {
  std::vector<Column> columns;
  for (const char* name : {"vision", "prefill", "prune", "decode", "total"})
    columns.push_back(share(
        concat(name, " ms"), [name](const json& c) { return member(c.at("all").at("times_ms"), name); }, 2));
  for (const char* name : {"vision", "prefill", "prune", "decode", "total"})
    columns.push_back(share(concat(name, " GFLOP"),
                            [name](const json& c) { return member(c.at("all").at("gflop"), name); }));
  columns.push_back(share(
      "KV cache KiB", [](const json& c) { return json(1024 * c.at("all").at("kv_mib").get<double>()); }, 0));
  columns.push_back(share(
      "peak MiB", [](const json& c) { return c.at("all").at("peak_mib"); }, 1));
  return table(cells, columns);
}

// What stands on a chart's axes, and the cells that are drawn.
struct Against {
  std::string title, x_name, x_unit;
  std::function<double(const json&)> x;
  double largest;  // x of the cells that are drawn
  std::function<json(const json&)> y = [](const json& cell) { return cell.at("average"); };
};

bool is_base(const json& cell) {
  return cell.at("method") == "none";
}

// One curve per method, from small budgets to large ones; the base model as a level line.
std::string curves(const std::vector<const json*>& cells, const Against& against) {
  std::vector<Curve> all;
  double low = against.largest, high = 0;
  for (const json* cell : cells) {
    const double x = against.x(*cell);
    const json value = against.y(*cell);
    if (x > against.largest || is_base(*cell) || !value.is_number()) continue;
    low = std::min(low, x);
    high = std::max(high, x);
    // A method's own rule is a point beside the curve of its budgets.
    const std::string own = cell->at("budget") == "own" ? " (own rule)" : "";
    const std::string name = cell->at("method").get<std::string>() + own;
    auto curve = std::find_if(all.begin(), all.end(), [&](const Curve& c) { return c.name == name; });
    if (curve == all.end()) curve = all.insert(all.end(), Curve{name, {}, {}});
    curve->points.emplace_back(x, value.get<double>());
    curve->notes.push_back("kept " + fixed(100 * cell->at("all").at("kept").get<double>(), 1) + " %, " +
                           fixed(cell->at("all").at("times_ms").at("total"), 1) + " ms");
  }
  for (const json* cell : cells) {
    if (!is_base(*cell) || !against.y(*cell).is_number()) continue;
    const double x = against.x(*cell), score = against.y(*cell);
    if (all.empty()) low = high = x;
    Curve line{all.empty() ? "none" : "none (everything kept)", {{low, score}}, {}};
    if (x > low && x < high) line.points.emplace_back(x, score);
    if (high > low) line.points.emplace_back(high, score);
    all.insert(all.begin(), line);
  }
  const ChartAxes axes{.zero = false,
                       .x_name = against.x_name,
                       .x_unit = against.x_unit,
                       .whole_x = false,
                       .last_values = false};
  const std::string chart = draw_chart(against.title, all, axes);
  return chart.empty() ? "" : "<div class='card'>" + chart + "</div>\n";
}

std::string all_curves(const std::vector<const json*>& cells, const std::string& task) {
  const auto all = [](const json& c) -> const json& { return c.at("all"); };
  // Budgets that keep more than half say nothing about pruning and would squeeze the rest.
  const bool pruned = std::any_of(cells.begin(), cells.end(),
                                  [&](const json* c) { return all(*c).at("kept").get<double>() <= 0.5; });
  return "<div class='grid2'>\n" +
         curves(cells, {"Score against kept tokens (" + task + ")", "visual tokens kept, %", "% kept",
                        [&](const json& c) { return 100 * all(c).at("kept").get<double>(); },
                        pruned ? 50.0 : 100.0}) +
         curves(cells,
                {"Score against time (" + task + ")", "time per question, ms", "ms",
                 [&](const json& c) { return all(c).at("times_ms").at("total").get<double>(); }, 1e99}) +
         curves(cells, {"Score against operations (" + task + ")", "operations per question, GFLOP", "GFLOP",
                        [&](const json& c) { return all(c).at("gflop").at("total").get<double>(); }, 1e99}) +
         curves(cells,
                {"F1 of kept tokens and boxes (" + task + ")", "visual tokens kept, %", "% kept",
                 [&](const json& c) { return 100 * all(c).at("kept").get<double>(); }, pruned ? 50.0 : 100.0,
                 [&](const json& c) { return member(all(c).at("mask"), "f1"); }}) +
         "</div>\n";
}

std::string shot(const Image& image, int side) {
  const double scale = std::min(1.0, static_cast<double>(side) / std::max(image.width, image.height));
  const Size size = scaled(image, scale);
  const std::vector<uint8_t> bytes = encode_jpeg(resize(image, size.width, size.height), 72);
  return "data:image/jpeg;base64," + base64({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// Of a video, whose frames are many, it is a wide one.
std::string figure(const Image& image, const std::string& caption, bool wide) {
  constexpr int side = 168, columns = 3;
  return concat("<figure", wide ? " class='wide'" : "", "><img alt='' src='",
                shot(image, wide ? columns * side : side), "'><figcaption>", caption,
                "</figcaption></figure>\n");
}

// What the answer of a line kept of the first image or video.
Image kept_of_first(const Medium& medium, const json& line) {
  const bool video = is_video(medium);
  std::vector<KeptGrid> grids;
  for (size_t i = 0; i < line.at("images").size(); ++i) {
    const bool first = video ? line.at("medium").at(i) == 0 : i == 0;
    const json& grid = line["images"][i].at("grid");
    if (first) grids.push_back({grid.at(0), grid.at(1), line.at("keep").at(i), seen_image(line).area});
  }
  return kept_picture(medium, grids, KeptStyle::overlay);
}

// The first row of each set, then the second ones, and so on: the same for every run.
std::vector<const TaskRow*> shown_rows(const EvalTask& task, size_t count) {
  std::vector<const TaskRow*> out;
  std::vector<const TaskRow*> left;
  for (const TaskRow& row : task.rows)
    if (!row.images.empty() || !row.videos.empty()) left.push_back(&row);
  while (out.size() < count && !left.empty()) {
    std::vector<std::string> seen;
    std::vector<const TaskRow*> rest;
    for (const TaskRow* row : left) {
      const bool fresh = std::find(seen.begin(), seen.end(), row->set) == seen.end();
      if (fresh && out.size() < count) {
        out.push_back(row);
        seen.push_back(row->set);
      } else {
        rest.push_back(row);
      }
    }
    left = std::move(rest);
  }
  return out;
}

// Of each method the budget that kept most nearly one ninth, and its own rule.
std::vector<const json*> shown_cells(const std::vector<const json*>& cells) {
  std::map<std::string, const json*> nearest;
  const auto off = [](const json* cell) {
    return std::abs(std::log(std::max(cell->at("all").at("kept").get<double>(), 1e-9) * 9));
  };
  const auto own = [](const json* cell) { return cell->at("budget") == "own"; };
  for (const json* cell : cells)
    if (const json*& best = nearest[cell->at("method")]; !own(cell) && (!best || off(cell) < off(best)))
      best = cell;
  std::vector<const json*> out;
  for (const json* cell : cells)
    if (own(cell) || nearest[cell->at("method")] == cell) out.push_back(cell);
  return out;
}

std::string gallery(const EvalPlan& plan, const EvalTask& task, const std::vector<const json*>& all_cells,
                    size_t count) {
  const std::vector<const TaskRow*> rows = shown_rows(task, count);
  const std::vector<const json*> cells = shown_cells(all_cells);
  std::vector<Answers> answers;
  for (const json* cell : cells)
    answers.push_back(read_answers(plan, task, {cell->at("method"), cell->at("budget")}));
  std::string out;
  for (const TaskRow* row : rows) {
    std::string shots;
    const bool video = row->images.empty();
    std::optional<Medium> medium;  // of a row that was answered, so that it can be read
    for (size_t i = 0; i < cells.size(); ++i) {
      const json& line = answers[i].at(row->key());
      if (line.contains("problem")) continue;
      if (!medium)
        medium = load_medium(video ? row->videos[0] : row->images[0], video, plan.bounds, plan.video);
      const std::string text = line.at("answer");
      const auto score = line_score(task.task, *row, line);
      const char* mark = !score ? "" : *score > 0.5 ? " class='right'" : " class='wrong'";
      const bool own = cells[i]->at("budget") == "own";
      shots += figure(kept_of_first(*medium, line),
                      concat("<b>", name_of(*cells[i]), own ? "" : " " + budget_name(*cells[i]), "</b> ",
                             line.at("kept_tokens"), " of ", line.at("visual_tokens"), "<br><span", mark, ">",
                             escape_html(text), "</span>"),
                      video);
    }
    std::string right;
    for (const std::string& each : row->answers) right += (right.empty() ? "" : " / ") + each;
    if (shots.empty()) continue;
    out += concat("<div class='card row'><b>", escape_html(row->question), "</b><br><span class='soft'>",
                  escape_html(row->set), "; right: ", escape_html(right), "</span><div class='shots'>", shots,
                  "</div></div>\n");
  }
  return out;
}

// What each method ran with: "divprune: keep 0.5; glimpse: threshold 0.5, min_keep 1".
std::string methods_table(const json& cells) {
  std::map<std::string, std::string> methods;
  for (const json& cell : cells) {
    std::string& text = methods[name_of(cell)];
    text = "";
    for (const json& stage : cell.at("pruning")) {
      text += (text.empty() ? "" : "; ") + escape_html(stage.at("method").get<std::string>());
      std::string separator = ": ";
      for (const auto& [name, value] : stage.at("settings").items()) {
        text += separator +
                escape_html(concat(name, " ", value.is_string() ? value.get<std::string>() : value.dump()));
        separator = ", ";
      }
    }
  }
  std::string out =
      "<p class='soft'>A budget takes the place of the shares that a method would keep by itself.</p>"
      "<div class='card scroll'><table class='settings'>\n";
  for (const auto& [name, text] : methods)
    out += concat("<tr><th>", name, "</th><td>", text.empty() ? "keeps everything" : text, "</td></tr>\n");
  return out + "</table></div>\n";
}

}  // namespace

std::string results_page(const EvalPlan& plan, const json& results, const json& about, size_t gallery_rows) {
  std::string body;
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    const json& task = results.at("tasks").at(i);
    const std::string name = task.at("name");
    std::vector<const json*> cells;
    for (const json& cell : results.at("cells"))
      if (cell.at("task") == name) cells.push_back(&cell);
    const std::string title = escape_html(name);
    const std::string left_out =
        task.at("left_out") == 0 ? "" : concat(", ", task.at("left_out"), " of them left out");
    size_t unparsed = 0;
    for (const json* cell : cells) unparsed += cell->value("unparsed", size_t{0});
    const std::string unread =
        unparsed == 0 ? "" : concat("; ", unparsed, " replies of the judge held no score and count 0");
    body += section(title + ": score",
                    concat("<p class='soft'>", task.at("rows"), " rows", left_out,
                           "; score: ", escape_html(task.at("score").get<std::string>()),
                           "; average is the mean of the sets; masks are compared with the rows' boxes",
                           unread, "</p>", all_curves(cells, title), score_table(cells, task)));
    body += section(
        title + ": cost, mean per question",
        "<p class='soft'>prefill ms holds prune ms; the operations of pruning are counted apart; peak "
        "MiB is the most that an answer took beside the loaded model</p>" +
            cost_table(cells));
    body += section(title + ": what is kept", gallery(plan, plan.tasks[i], cells, gallery_rows));
  }
  body += section("Settings of the methods", methods_table(results.at("cells")));
  body += section("Settings", settings_table(about));
  const std::string model = about.value("model", "");
  return web_page("Evaluation of pruning methods", "Evaluation of pruning methods",
                  escape_html(concat("model ", model, ", ", about.value("commit", ""), ", ",
                                     member(about, "machine").value("processor", ""))),
                  body, kStyle);
}

}  // namespace glimpse
