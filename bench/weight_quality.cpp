// What rounding the weights or the KV cache costs on real questions: weight_quality --help.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <set>

#include "glimpse/base/check.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/decode.h"
#include "glimpse/io/rows.h"

namespace {

using namespace glimpse;

struct Question {
  Request request;
  std::string expected;
};

std::vector<Question> read_questions(const std::string& file, const std::filesystem::path& root,
                                     size_t limit) {
  std::vector<Question> questions;
  visit_lines(file, [&](const std::string& text, size_t) {
    const QuestionRow row = parse_question_row(text);
    Question& question = questions.emplace_back();
    Message message{"user", {}};
    for (const std::string& name : row.images) {
      question.request.media.push_back(load_image(find_image(root, row.dataset, name)));
      message.parts.push_back({Part::Kind::image, {}});
    }
    message.parts.push_back({Part::Kind::text, row.question});
    question.request.messages.push_back(std::move(message));
    question.request.max_new_tokens = 48;
    question.expected = text_member(row.object, "answer");
    return limit == 0 || questions.size() < limit;
  });
  return questions;
}

// Log-probabilities [steps, V] of the next token after the pruned prompt and after each of `ids`.
at::Tensor distributions(const Engine& engine, const Request& request, const std::vector<int64_t>& ids) {
  const at::NoGradGuard no_grad;
  Sequence sequence;
  sequence.kv = engine.kv();
  sequence.prompt = engine.model().prompt(request.messages, request.media, request.bounds);
  sequence.pruners = make_pruners(engine.default_prune(), engine.pruner_context());
  Sequence* const sequences[] = {&sequence};
  std::vector<at::Tensor> all = {prefill(engine.model(), sequences)};
  for (const int64_t id : ids) all.push_back(decode_step(engine.model(), sequences, {id}));
  return at::cat(all).to(at::kDouble).log_softmax(1);
}

double overlap(const std::vector<std::vector<int64_t>>& a, const std::vector<std::vector<int64_t>>& b) {
  size_t both = 0, either = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    std::set<int64_t> all(a[i].begin(), a[i].end());
    for (const int64_t token : b[i]) both += all.count(token);
    all.insert(b[i].begin(), b[i].end());
    either += all.size();
  }
  return either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
}

// Whether the model can be kept as it is stored, in few bits.
bool has_few_bits(const EngineOptions& options) {
  const Weights weights = open_weights(*model_source(options));
  const std::vector<std::string> names = weights.names();
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return weights.few_bits(name) != nullptr; });
}

void run(EngineOptions options, bool of_cache, const std::vector<Question>& questions) {
  const auto count = static_cast<double>(questions.size());
  std::printf(
      "| %s | exact answers | answers as bf16 | kept tokens, IoU with bf16 | mean KL of bf16's "
      "next-token "
      "distributions |\n|---|---|---|---|---|\n",
      of_cache ? "KV cache" : "weights");
  std::vector<Answer> plain;
  std::vector<at::Tensor> distributions_of_plain;
  std::vector<const char*> formats = {"bf16", "int8", "int4"};
  if (!of_cache && has_few_bits(options)) formats.insert(formats.begin() + 1, "auto");
  for (const char* bits : formats) {
    (of_cache ? options.kv : options.weights) = bits;
    const auto engine = Engine::load(options);
    size_t exact = 0, same = 0;
    double iou = 0, divergence = 0;
    for (size_t i = 0; i < questions.size(); ++i) {
      Answer answer = engine->ask(questions[i].request);
      exact += answer.text == questions[i].expected;
      const bool first = plain.size() == i;
      if (first) plain.push_back(answer);
      const at::Tensor own = distributions(*engine, questions[i].request, plain[i].ids);
      if (first) distributions_of_plain.push_back(own);
      const at::Tensor& p = distributions_of_plain[i];
      same += answer.text == plain[i].text;
      iou += overlap(answer.keep, plain[i].keep);
      divergence += (p.exp() * (p - own)).sum(1).mean().item<double>();
    }
    std::printf("| %s | %zu/%zu = %.2f %% | %zu | %.3f | %.5f |\n", bits, exact, questions.size(),
                100 * static_cast<double>(exact) / count, same, iou / count, divergence / count);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  EngineOptions options;
  options.dtype = "bf16";
  const std::string tiny = GLIMPSE_SOURCE_DIR "/models/tiny/test";
  std::string rows = tiny + "/rows.jsonl", root = tiny;
  size_t limit = 0;
  bool of_cache = false;
  CLI::App app{
      "Answers, kept tokens and next-token distributions with weights of 8 and 4 bits against bf16, all "
      "with the model's own pruning",
      "weight_quality"};
  app.option_defaults()->always_capture_default();
  app.add_option("--model", options.model, "model directory (default: the built-in model)");
  app.add_option("--new-modules", options.new_modules, "pruning modules");
  app.add_option("--rows", rows, "JSONL file of questions with answers");
  app.add_option("--image-root", root, "folder of the images");
  app.add_flag("--kv", of_cache, "KV caches of 8 and 4 bits instead");
  app.add_option("--cache-mb", options.cache_mb, "with this memory for images that were seen before");
  app.add_option("--limit", limit, "the first N rows only (0: all)");
  app.add_option("--threads", options.threads, "CPU threads (0: one per core)");
  CLI11_PARSE(app, argc, argv);
  try {
    run(options, of_cache, read_questions(rows, root, limit));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "weight_quality: %s\n", error.what());
    return 1;
  }
}
