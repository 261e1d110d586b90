// Answering the rows of an evaluation.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include "glimpse/base/timer.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/eval/downsample.h"
#include "glimpse/eval/evaluation.h"
#include "glimpse/eval/machine.h"
#include "glimpse/io/line_file.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

double rounded(double value, double per_unit) {
  return std::round(value * per_unit) / per_unit;
}

json line_of(const TaskRow& row, const Request& request, const Answer& answer, const AnswerFlops& flops,
             double total_ms, std::optional<double> peak_mib) {
  const auto giga = [](double value) { return rounded(value / 1e9, 1e6); };
  json line = {
      {"id", row.id},
      {"set", row.set},
      {"row", row.fingerprint},
      {"answer", answer.text},
      {"finish_reason", answer.finish_reason},
      {"tokens", answer.ids.size()},
      {"prompt_tokens", answer.prompt_tokens},
      {"visual_tokens", answer.visual_tokens},
      {"kept_tokens", answer.kept_tokens},
      {"keep", answer.keep},
      {"pruning", answer.pruning},
      {"times_ms", answer.times.to_json()},
      {"gflop",
       {{"prefill", giga(flops.prefill)}, {"prune", giga(flops.prune)}, {"decode", giga(flops.decode)}}},
      {"kv_bytes", answer.kv_bytes},
      {"peak_mib", peak_mib ? json(rounded(*peak_mib, 10)) : json()}};
  line["times_ms"]["total"] = rounded(total_ms, 1000);
  if (flops.vision) line["gflop"]["vision"] = giga(*flops.vision);
  json images = json::array();
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& span = answer.segments[i];
    const Size size = size_of(request.media[span.medium]);
    images.push_back({{"grid", {span.rows, span.cols}},
                      {"size", {size.width, size.height}},
                      {"area", {span.area.x1, span.area.y1, span.area.x2, span.area.y2}}});
  }
  line["images"] = images;
  note_media(line, answer.segments, [&](int64_t medium) { return is_video(request.media[medium]); });
  return line;
}

// One task's cells, open for this process.
struct OpenCell {
  const GridCell* cell;
  PrunerChain pruners;
  std::set<std::string> done;
  std::unique_ptr<LineFile> file;
};

// Reads the file once through, of a video's only the beginning: what fails here is the disk, or the file is
// gone, and says nothing about what it shows.
void check_readable(const fs::path& path, bool whole) {
  std::ifstream in(path, std::ios::binary);
  char block[1 << 16];
  while (in.read(block, sizeof block) && whole) {
  }
  if (!in && !in.eof()) throw std::ios_base::failure(path.string() + ": reading failed");
}

Request make_request(const EvalPlan& plan, const Task& task, const TaskRow& row) {
  check(row.problem.empty(), row.problem);
  for (const auto* files : {&row.images, &row.videos})
    for (const fs::path& path : *files)
      if (!fs::is_directory(path)) check_readable(path, files == &row.images);
  RowMedia shown = load_row_media(row.images, row.videos, row.boxes, plan.bounds, plan.video);
  Request request;
  Message message{"user", std::move(shown.parts)};
  message.parts.push_back({Part::Kind::text, row.question});
  request.messages = {message};
  request.media = std::move(shown.media);
  request.boxes = std::move(shown.boxes);
  request.bounds = plan.bounds;
  request.max_new_tokens = plan.max_new_tokens.value_or(task.max_new_tokens);
  return request;
}

class Answering {
 public:
  Answering(const EvalPlan& plan, const Engine& engine, const Accounting& accounting,
            const std::stop_token& stop, const std::function<void(const std::string&)>& step)
      : plan_(plan), engine_(engine), accounting_(accounting), stop_(stop), step_(step) {}

  // False when a stop was requested.
  bool run(const EvalTask& task) {
    const fs::path dir = answers_dir(plan_, task);
    std::vector<OpenCell> cells;
    fs::create_directories(dir);
    for (const GridCell& cell : plan_.cells) {
      cells.push_back({&cell, compared_pruners(cell.method, engine_.pruner_context()), {}, nullptr});
      for (const auto& [key, line] : read_answers(plan_, task, cell))
        if (!to_retry(line)) cells.back().done.insert(key);
      cells.back().file =
          std::make_unique<LineFile>(dir / concat(cell.label(), ".r", plan_.shard.rank, ".jsonl"));
    }
    for (size_t i = 0; i < task.rows.size(); ++i) {
      const TaskRow& row = task.rows[i];
      if (!plan_.shard.mine(i)) continue;
      std::vector<OpenCell*> open;
      for (size_t c = 0; c < cells.size(); ++c)  // a different one first each time
        if (OpenCell& cell = cells[(c + i) % cells.size()]; !cell.done.contains(row.key()))
          open.push_back(&cell);
      if (!open.empty() && !answer(task.task, row, open)) return false;
    }
    return true;
  }

 private:
  bool answer(const Task& task, const TaskRow& row, const std::vector<OpenCell*>& open) {
    Request request;
    bool going = true;
    if (!attempt(row, open, [&] { request = make_request(plan_, task, row); })) return true;
    request.stop = stop_;
    for (OpenCell* cell : open)
      if (going) attempt(row, {cell}, [&] { going = answer(row, request, *cell); });
    return going;
  }

  bool answer(const TaskRow& row, Request& request, OpenCell& cell) {
    request.prune = cell.cell->method;
    request.reuse = Reuse::never;  // of the methods that are compared every one runs
    request.budget = budget_of(plan_, *cell.cell, row);
    if (cell.cell->method == kDownsample && !request.media.empty()) {
      check(accounting_.token_pixels().has_value(), kDownsample,
            ": this model's config.json tells no token size");
      const auto [smaller, visual] = downsampled(request, engine_.model(), *accounting_.token_pixels());
      return answer(row, smaller, cell, visual);
    }
    return answer(row, request, cell, {});
  }

  // `visual`: the tokens that the pictures have as they are, where those of the request are smaller ones.
  bool answer(const TaskRow& row, const Request& request, OpenCell& cell, std::optional<int64_t> visual) {
    if (!warm_.contains(cell.cell->label())) {
      if (engine_.ask(request).finish_reason == "cancelled") return false;
      warm_.insert(cell.cell->label());
    }
    const PeakMemory peak;
    const Timer timer;
    const Answer answer = engine_.ask(request);
    const double ms = timer.ms();
    if (answer.finish_reason == "cancelled") return false;
    const AnswerFlops flops = accounting_.of(answer, cell.pruners);
    json line = line_of(row, request, answer, flops, ms, peak.mib());
    if (visual) {
      line["visual_tokens"] = *visual;
      line["pruning"] = {{{"method", kDownsample}, {"settings", json::object()}}};
    }
    if (cell.cell->budget == "from") line["budget"] = budget_json(request.budget);
    if (const auto side = accounting_.token_pixels()) line["token_pixels"] = *side;
    cell.file->write(line);
    step_(concat(cell.cell->label(), " kept ", answer.kept_tokens, "/", answer.visual_tokens));
    return true;
  }

  // Whether `work` went well; else notes why these cells have no answer to the row, unless that ends the run.
  template <class Work>
  bool attempt(const TaskRow& row, const std::vector<OpenCell*>& cells, const Work& work) {
    try {
      work();
      return true;
    } catch (const std::logic_error&) {
      throw;  // a mistake of this program
    } catch (const std::exception& error) {
      const std::string_view why = error.what();  // libtorch adds where it happened, line by line
      const std::string text = concat(row.place, ": ", why.substr(0, why.find('\n')));
      check(plan_.keep_going, text);
      json line = {{"id", row.id}, {"set", row.set}, {"row", row.fingerprint}, {"problem", text}};
      // What is wrong with a row will be so tomorrow; memory may be free again by then, and a disk be back.
      if (!dynamic_cast<const Error*>(&error)) line["retry"] = true;
      for (OpenCell* cell : cells) {
        cell->file->write(line);
        step_(text);
      }
      return false;
    }
  }

  const EvalPlan& plan_;
  const Engine& engine_;
  const Accounting& accounting_;
  const std::stop_token& stop_;
  const std::function<void(const std::string&)>& step_;
  std::set<std::string> warm_;
};

}  // namespace

bool answer_rows(const EvalPlan& plan, const Engine& engine, const Accounting& accounting,
                 const std::stop_token& stop, const std::function<void(const std::string&)>& step) {
  Answering answering(plan, engine, accounting, stop, step);
  return std::all_of(plan.tasks.begin(), plan.tasks.end(),
                     [&](const EvalTask& task) { return answering.run(task); });
}

}  // namespace glimpse
