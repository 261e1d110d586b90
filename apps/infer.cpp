#include <fstream>
#include <iostream>
#include <map>
#include <span>

#include "flags.h"
#include "glimpse/base/json_file.h"
#include "glimpse/image/decode.h"
#include "rows.h"

namespace glimpse::app {

namespace {

struct InferFlags {
  CommonFlags common;
  std::string rows, image_root = ".", out, budget_from;
  size_t limit = 0, batch = 1;
  bool overwrite = false, keep_going = false;
};

// How many tokens an earlier run kept, by the row's id.
using KeptCounts = std::map<std::string, int64_t>;

KeptCounts read_budget(const std::string& file) {
  KeptCounts counts;
  if (file.empty()) return counts;
  check_is_file(file);
  std::ifstream in(file);
  size_t line = 0;
  for (std::string text; std::getline(in, text);) {
    ++line;
    const auto row = nlohmann::json::parse(text, nullptr, false);
    const auto& kept = member(row, "kept_tokens");
    check(row.is_object() && row.contains("id") && kept.is_number_integer(), "--budget-from ", file, ":",
          line, ": expected a row of glimpse infer, with id and kept_tokens");
    counts[row["id"].dump()] = kept.get<int64_t>();
  }
  return counts;
}

Request make_request(const Request& shared, const Row& row, const KeptCounts& budget) {
  check(row.problem.empty(), row.problem);
  Request request = shared;
  if (!budget.empty()) {
    const auto found = budget.find(row.id.dump());
    check(found != budget.end(), "--budget-from has no row with id ", row.id.dump());
    request.budget.count = found->second;
  }
  Message message{"user", {}};
  for (const auto& path : row.images) {
    request.images.push_back(load_image(path));
    message.parts.push_back({Part::Kind::image, {}});
  }
  message.parts.push_back({Part::Kind::text, row.question});
  request.messages.push_back(std::move(message));
  request.boxes.resize(row.images.size());
  for (const auto& box : row.boxes)
    if (!request.images.empty())
      request.boxes[0].push_back(
          normalise_box({box[0], box[1], box[2], box[3]}, request.images[0].width, request.images[0].height));
  return request;
}

nlohmann::json result(const Row& row, const Answer& answer) {
  return {{"id", row.id},
          {"answer", answer.text},
          {"token_ids", answer.ids},
          {"finish_reason", answer.finish_reason},
          {"visual_tokens", answer.visual_tokens},
          {"kept_tokens", answer.kept_tokens},
          {"keep", answer.keep},
          {"times_ms", times_json(answer)}};
}

nlohmann::json settings_of(const InferFlags& flags, const Engine& engine, Request request) {
  const EngineOptions& e = flags.common.engine;
  nlohmann::json pruning = nlohmann::json::array();
  for (const auto& pruner : make_pruners(request.prune, engine.pruner_context()))
    pruning.push_back({{"method", pruner->name()}, {"settings", pruner->settings()}});
  return {
      {"rows", flags.rows},
      {"model", e.model.empty() ? "built-in" : e.model},
      {"new_modules", e.new_modules},
      {"adapters", e.adapters},
      {"dtype", e.dtype},
      {"pruning", pruning},
      {"budget_from", flags.budget_from},
      {"image_root", flags.image_root},
      {"keep", request.budget.keep ? nlohmann::json(*request.budget.keep) : nlohmann::json(nullptr)},
      {"sampling", request.sampling.fields().to_json()},
      {"max_new_tokens", request.max_new_tokens},
      {"min_pixels", flags.common.bounds.min_pixels.value_or(0)},
      {"max_pixels", flags.common.bounds.max_pixels.value_or(0)},
      {"system", flags.common.has_system ? nlohmann::json(flags.common.system) : nlohmann::json(nullptr)}};
}

// What is asked together, and where the answers go.
class Batches {
 public:
  Batches(const Engine& engine, const InferFlags& flags, ResumableLines& out, size_t total, size_t done)
      : engine_(engine),
        flags_(flags),
        out_(out),
        progress_(total, done),
        budget_(read_budget(flags.budget_from)) {}

  /// False when a stop was requested.
  bool answer(const Request& shared, std::span<const Row> rows) {
    std::vector<const Row*> chosen;
    std::vector<Request> requests;
    for (const Row& row : rows) try {
        requests.push_back(make_request(shared, row, budget_));
        chosen.push_back(&row);
      } catch (const Error& error) {
        reject(row, error);
      }
    return requests.empty() || ask(requests, chosen);
  }

  size_t failed() const { return failed_; }

 private:
  bool ask(std::span<const Request> requests, std::span<const Row* const> rows) {
    std::vector<Answer> answers;
    try {
      answers = engine_.ask(requests);
    } catch (const Error& error) {
      // One request spoils its batch: the others are answered one by one.
      if (rows.size() == 1) return reject(*rows[0], error), true;
      for (size_t i = 0; i < rows.size(); ++i)
        if (!ask(requests.subspan(i, 1), rows.subspan(i, 1))) return false;
      return true;
    }
    bool stopped = false;
    for (size_t i = 0; i < answers.size(); ++i) {
      const Answer& answer = answers[i];
      if (answer.finish_reason == "cancelled") {
        stopped = true;
        continue;
      }
      out_.write(result(*rows[i], answer));
      progress_.step(concat("kept ", answer.kept_tokens, "/", answer.visual_tokens));
    }
    return !stopped;
  }

  void reject(const Row& row, const Error& error) {
    const std::string text = concat(flags_.rows, ":", row.line, ": ", error.what());
    check(flags_.keep_going, text);
    std::cerr << "glimpse: " << text << "\n";
    ++failed_;
  }

  const Engine& engine_;
  const InferFlags& flags_;
  ResumableLines& out_;
  Progress progress_;
  const KeptCounts budget_;
  size_t failed_ = 0;
};

int run(const InferFlags& flags, Interrupt& interrupt) {
  std::vector<Row> rows = read_rows(flags.rows, flags.image_root, flags.limit);
  for (const Row& row : rows)
    check(flags.keep_going || row.problem.empty(), flags.rows, ":", row.line, ": ", row.problem);
  std::error_code ignored;
  check(!std::filesystem::equivalent(flags.rows, flags.out, ignored), "--out ", flags.out,
        " is the file of rows itself");
  const auto engine = Engine::load(flags.common.engine);
  Request shared = flags.common.request(*engine);
  ResumableLines out(flags.out, settings_of(flags, *engine, shared), flags.overwrite);
  const size_t total = rows.size();
  std::erase_if(rows, [&](const Row& row) { return out.done(row.id); });
  if (total != rows.size()) std::cerr << "glimpse: " << total - rows.size() << " rows are already answered\n";
  shared.stop = interrupt.arm();

  Batches batches(*engine, flags, out, total, total - rows.size());
  for (size_t first = 0; first < rows.size(); first += flags.batch)
    if (!batches.answer(shared, std::span(rows).subspan(first, std::min(flags.batch, rows.size() - first)))) {
      std::cerr << "\nglimpse: stopped; the same command goes on from here\n";
      return 130;
    }
  check(batches.failed() == 0, batches.failed(), " of ", total, " rows could not be answered; see above");
  return 0;
}

}  // namespace

std::function<int()> add_infer(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<InferFlags>();
  app.add_option("rows", flags->rows,
                 "JSONL file: question, image (a name or a list), optional id, dataset, bboxs")
      ->required();
  app.add_option("-o,--out", flags->out, "JSONL file of answers; an existing one is continued")
      ->required()
      ->type_name("FILE")
      ->group("Output");
  app.add_option("--image-root", flags->image_root, "folder of the images; also <root>/cot/<dataset>/<image>")
      ->type_name("DIR")
      ->capture_default_str()
      ->group("Images");
  app.add_option("--budget-from", flags->budget_from,
                 "keep as many tokens of each row as an earlier output kept, whatever the method")
      ->type_name("FILE")
      ->group("Pruning");
  app.add_flag("--overwrite", flags->overwrite, "start the output file again")->group("Output");
  app.add_flag("--keep-going", flags->keep_going, "report rows that cannot be answered and go on")
      ->group("Output");
  app.add_option("--limit", flags->limit, "answer only the first N rows (0: all)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->group("Output");
  app.add_option("--batch", flags->batch, "rows answered together")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group("Model");
  flags->common.add(app);
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
