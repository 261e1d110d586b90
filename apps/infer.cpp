#include <chrono>
#include <iomanip>
#include <iostream>
#include <map>
#include <numeric>

#include "flags.h"
#include "glimpse/base/timer.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/eval/grid.h"
#include "paths.h"
#include "rows.h"

namespace glimpse::app {

namespace {

struct InferFlags {
  CommonFlags common;
  std::string rows, image_root = ".", out, budget_from;
  size_t limit = 0, kv_mb = 0;
  int64_t batch = 1;
  bool overwrite = false, keep_going = false;
};

Request make_request(const Request& shared, const Row& row, const KeptCounts& budget,
                     const VideoOptions& video) {
  check(row.problem.empty(), row.problem);
  Request request = shared;
  if (budget.given()) request.budget = budget.of(row.set, row.id);
  RowMedia shown = load_row_media(row.images, row.videos, row.boxes, shared.bounds, video);
  Message message{"user", std::move(shown.parts)};
  message.parts.push_back({Part::Kind::text, row.question});
  request.messages.push_back(std::move(message));
  request.media = std::move(shown.media);
  request.boxes = std::move(shown.boxes);
  return request;
}

nlohmann::json result(const Row& row, const Answer& answer) {
  nlohmann::json out = {{"id", row.id},
                        {"row", row.fingerprint()},
                        {"answer", answer.text},
                        {"token_ids", answer.ids},
                        {"finish_reason", answer.finish_reason},
                        {"visual_tokens", answer.visual_tokens},
                        {"cached_tokens", answer.cached_tokens},
                        {"kept_tokens", answer.kept_tokens},
                        {"keep", answer.keep},
                        {"times_ms", answer.times.to_json()}};
  if (answer.shortcut) out["shortcut"] = *answer.shortcut;
  note_media(out, answer.segments, [&](int64_t medium) { return medium >= std::ssize(row.images); });
  return out;
}

nlohmann::json settings_of(const InferFlags& flags, const Engine& engine, Request request,
                           const KeptCounts& budget) {
  nlohmann::json pruning = nlohmann::json::array();
  for (const auto& pruner : make_pruners(request.prune, engine.pruner_context()))
    pruning.push_back({{"method", pruner->name()}, {"settings", pruner->settings()}});
  nlohmann::json keep;
  if (request.budget.keep) keep = *request.budget.keep;
  if (request.budget.count) keep = *request.budget.count;
  nlohmann::json settings = model_settings(flags.common.engine);
  settings.update({
      {"rows", flags.rows},
      {"pruning", pruning},
      {"budget_from", budget.given() ? budget.hash() : ""},
      {"image_root", flags.image_root},
      {"keep", keep},
      {"sampling", request.sampling.fields().to_json()},
      {"max_new_tokens", request.max_new_tokens},
      {"min_pixels", flags.common.bounds.min_pixels.value_or(0)},
      {"max_pixels", flags.common.bounds.max_pixels.value_or(0)},
      {"preprocessing", flags.common.bounds.preprocessing},
      {"system", flags.common.has_system ? nlohmann::json(flags.common.system) : nlohmann::json(nullptr)},
  });
  if (flags.common.frames.given()) settings["video"] = flags.common.frames.values();
  return settings;
}

// The order of asking: rows about the same images and videos one after the other, so that these are still in
// the cache, but no row more than a window away from its place: answers wait for those of the rows before
// them.
std::vector<size_t> asking_order(const std::vector<Row>& rows, bool grouped) {
  constexpr size_t window = 256;
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t first = 0; grouped && first < order.size(); first += window) {
    const auto begin = order.begin() + static_cast<std::ptrdiff_t>(first),
               end = order.begin() + static_cast<std::ptrdiff_t>(std::min(first + window, order.size()));
    const auto shown = [&](size_t row) { return std::pair(rows[row].images, rows[row].videos); };
    std::map<decltype(shown(0)), size_t> seen;  // and by which row first
    for (auto row = begin; row != end; ++row) seen.emplace(shown(*row), *row);
    std::stable_sort(begin, end, [&](size_t x, size_t y) { return seen.at(shown(x)) < seen.at(shown(y)); });
  }
  return order;
}

// Keeps the scheduler supplied with rows and writes the answers in the rows' order.
class Answering {
 public:
  Answering(const Engine& engine, const InferFlags& flags, const std::vector<Row>& rows,
            const KeptCounts& budget, ResumableLines& out, size_t total)
      : flags_(flags),
        rows_(rows),
        out_(out),
        progress_(total, total - rows.size()),
        budget_(budget),
        scheduler_(engine, {.max_sequences = flags.batch, .kv_bytes = flags.kv_mb << 20, .waiting_bytes = 0}),
        order_(asking_order(rows, engine.prefix_cache() != nullptr)),
        results_(rows.size()) {}

  /// False when a stop was requested.
  bool run(const Request& shared) {
    while (written_ < rows_.size() && !stopped_) {
      // One request more than run at once is ready to start; more than a few would only fill the memory.
      while (asked_ < order_.size() && std::ssize(in_flight_) <= flags_.batch &&
             scheduler_.state().waiting < 8)
        ask(shared, order_[asked_++]);
      scheduler_.step();
      std::erase_if(in_flight_, [&](InFlight& each) { return collect(each); });
      write();
    }
    return !stopped_;
  }

  size_t failed() const { return failed_; }

  /// What was answered, in a line or two for people.
  std::string summary() const {
    const auto share = [](double part, double whole) { return whole > 0 ? part / whole : 0; };
    const double seconds = timer_.ms() / 1000;
    std::ostringstream out;
    out << std::fixed << std::setprecision(1) << answered_ << " rows answered in " << seconds << " s ("
        << share(static_cast<double>(answered_), seconds) << " rows/s)";
    if (visual_ > 0)
      out << ", visual tokens kept: " << kept_ << " of " << visual_ << " ("
          << 100 * share(static_cast<double>(kept_), static_cast<double>(visual_)) << " %)";
    if (cut_ > 0)
      out << "\nglimpse: " << cut_ << " of these answers were cut at --max-new-tokens or the model's context";
    return out.str();
  }

 private:
  struct InFlight {
    size_t row;
    std::future<Answer> answer;
  };
  struct Result {
    bool done = false;
    nlohmann::json line;  // null: it failed
    std::string note;     // for the progress line, or the error
  };

  void ask(const Request& shared, size_t row) {
    attempt(row, [&] {
      in_flight_.push_back(
          {row, scheduler_.submit(make_request(shared, rows_[row], budget_, flags_.common.video))});
    });
  }

  // Notes why a row has no answer; a mistake of this program ends it.
  template <class Work>
  void attempt(size_t row, const Work& work) {
    try {
      work();
    } catch (const std::logic_error&) {
      throw;
    } catch (const Error& error) {
      results_[row] = {true, {}, error.what()};
    } catch (const std::exception& error) {
      const std::string_view why = error.what();  // libtorch adds where it happened, line by line
      results_[row] = {true, {}, std::string(why.substr(0, why.find('\n')))};
    }
  }

  // Takes the answer if there is one.
  bool collect(InFlight& each) {
    if (each.answer.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
    attempt(each.row, [&] {
      const Answer answer = each.answer.get();
      if (answer.finish_reason == "cancelled")
        stopped_ = true;
      else
        take(each.row, answer);
    });
    return true;
  }

  void take(size_t row, const Answer& answer) {
    results_[row] = {true, result(rows_[row], answer),
                     concat("kept ", answer.kept_tokens, "/", answer.visual_tokens)};
    ++answered_;
    visual_ += answer.visual_tokens;
    kept_ += answer.kept_tokens;
    cut_ += answer.finish_reason == "length";
  }

  void write() {
    for (; written_ < results_.size() && results_[written_].done; ++written_) {
      Result& result = results_[written_];
      if (result.line.is_null()) {
        reject(rows_[written_], result.note);
      } else {
        out_.write(result.line);
        progress_.step(result.note);
      }
      result.line = {};
    }
  }

  void reject(const Row& row, const std::string& error) {
    const std::string text = concat(flags_.rows, ":", row.line, ": ", error);
    check(flags_.keep_going, text);
    std::cerr << "glimpse: " << text << "\n";
    ++failed_;
  }

  const InferFlags& flags_;
  const std::vector<Row>& rows_;
  ResumableLines& out_;
  Progress progress_;
  const KeptCounts& budget_;
  Scheduler scheduler_;
  const std::vector<size_t> order_;
  std::vector<Result> results_;  // of each row
  std::vector<InFlight> in_flight_;
  size_t asked_ = 0, written_ = 0, failed_ = 0;
  int64_t answered_ = 0, visual_ = 0, kept_ = 0, cut_ = 0;  // of this run, for its summary
  const Timer timer_;
  bool stopped_ = false;
};

int run(InferFlags& flags, Interrupt& interrupt) {
  std::vector<Row> rows = read_rows(flags.rows, flags.image_root, flags.limit);
  for (const Row& row : rows)
    check(flags.keep_going || row.problem.empty(), flags.rows, ":", row.line, ": ", row.problem);
  std::vector<NamedPath> inputs = {{"the file of rows", flags.rows}, {"--budget-from", flags.budget_from}};
  for (const Row& row : rows) {
    for (const auto& image : row.images) inputs.push_back({"a picture of the rows", image});
    for (const auto& video : row.videos) inputs.push_back({"a video of the rows", video});
  }
  check_outputs({{"--out", flags.out}}, inputs);
  const bool has_videos = std::ranges::any_of(rows, [](const Row& row) { return !row.videos.empty(); });
  flags.common.check_used(
      has_videos || std::ranges::any_of(rows, [](const Row& row) { return !row.images.empty(); }),
      has_videos);
  const KeptCounts budget = flags.budget_from.empty() ? KeptCounts() : KeptCounts(flags.budget_from);
  flags.common.provide(interrupt);
  const auto engine = Engine::load(flags.common.engine);
  Request shared = flags.common.request(*engine);
  check(!budget.given() || takes_budget(shared.prune),
        "--budget-from needs a pruning method that takes a budget; --prune ", shared.prune, " takes none");
  ResumableLines out(flags.out, settings_of(flags, *engine, shared, budget), flags.overwrite);
  const size_t total = rows.size();
  std::erase_if(rows, [&](const Row& row) { return row.problem.empty() && out.done(row); });
  if (total != rows.size()) std::cerr << "glimpse: " << total - rows.size() << " rows are already answered\n";
  shared.stop = interrupt.arm();

  Answering answering(*engine, flags, rows, budget, out, total);
  if (!answering.run(shared)) {
    std::cerr << "\nglimpse: stopped; the same command goes on from here\n";
    return 130;
  }
  std::cerr << "glimpse: " << answering.summary() << "\n";
  check(answering.failed() == 0, answering.failed(), " of ", total, " rows could not be answered; see above");
  return 0;
}

}  // namespace

std::function<int()> add_infer(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<InferFlags>();
  app.add_option("rows", flags->rows,
                 "JSONL file: question, image or images, video or videos (a name or a list), optional id, "
                 "dataset, bboxs")
      ->required();
  app.add_option("-o,--out", flags->out, "JSONL file of answers; an existing one is continued")
      ->required()
      ->type_name("FILE")
      ->group("Output");
  app.add_option("--image-root", flags->image_root,
                 "folder of the images and videos; also <root>/cot/<dataset>/<image>")
      ->type_name("DIR")
      ->capture_default_str()
      ->group("Images");
  app.add_option("--budget-from", flags->budget_from,
                 "keep as many tokens of each image as an earlier run did, whatever the method: an output of "
                 "infer, or DIR/METHOD@BUDGET of an evaluation in DIR")
      ->type_name("RUN")
      ->group("Pruning");
  app.add_flag("--overwrite", flags->overwrite, "start the output file again")->group("Output");
  app.add_flag("--keep-going", flags->keep_going, "report rows that cannot be answered and go on")
      ->group("Output");
  app.add_option("--limit", flags->limit, "answer only the first N rows (0: all)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->group("Output");
  app.add_option("--batch", flags->batch, "rows answered at the same time, at most")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group("Model");
  app.add_option("--kv-mb", flags->kv_mb,
                 "bound on the KV caches of the rows answered at the same time, in MiB; more wait (0: none)")
      ->type_name("N")
      ->check(CLI::Range(size_t{0}, size_t{1} << 30))
      ->capture_default_str()
      ->group("Model");
  flags->common.add(app);
  add_cache_flag(app, flags->common.engine);
  add_reuse_flag(app, flags->common.reuse);
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
