#include "bench/answers.h"

#include <cmath>

#include "bench/workload.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/engine/engine.h"
#include "glimpse/io/quantization.h"

namespace glimpse::bench {

namespace {

nlohmann::json model_config(const Question& question) {
  return read_json(question.checkpoint / "model" / "config.json");
}

std::string tera(double flops) {
  return concat(std::round(flops / 1e10) / 100, " TFLOP");
}

// Decoding steps and how fast the weights were read right before them.
struct Decoding {
  Samples times;
  double bytes_per_s = 0;  // the best

  void run(const Vlm& model, std::span<Sequence* const> sequences, at::Tensor logits, int64_t steps) {
    bytes_per_s = std::max(bytes_per_s, weights_read_rate(model.decoder()));
    const Timer timer;
    for (int64_t i = 0; i < steps; ++i)
      logits = decode_step(model, sequences, {logits.argmax().item<int64_t>()});
    times.add(timer.ms());
  }
};

// Everything measured about one way of answering.
struct Measured {
  Samples prefill, prune;
  Decoding decode;
  double kv_mib = 0, first_ms = 0;
  double vision_mib = 0, prefill_mib = 0, decode_mib = 0;  // peaks without mapped files
  int64_t rows = 0;                                        // left after prefill
};

class Answers {
 public:
  Answers(const Question& question, const Vlm& model)
      : question_(question), model_(model), prompt_(make_prompt(question, model)) {}

  void answer(const PrunerChain& pruners, Measured& measured) {
    Sequence sequence;
    sequence.prompt = prompt_;
    sequence.pruners = pruners;
    sequence.budget.keep = question_.keep;
    Sequence* const sequences[] = {&sequence};
    Memory::trim_and_reset_peak();
    const Timer whole;
    // The first layer's output is the earliest sign that the encoder is done.
    const at::Tensor logits = prefill(model_, sequences, [&](int64_t layer, const at::Tensor&) {
      if (layer == 0) note_peak(measured.vision_mib);
    });
    if (measured.first_ms == 0) measured.first_ms = whole.ms();
    note_peak(measured.prefill_mib);
    vision.add(sequence.times.vision);
    measured.prefill.add(sequence.times.prefill);
    measured.prune.add(sequence.times.prune);
    measured.kv_mib = static_cast<double>(sequence.cache.bytes()) / 1048576;
    measured.rows = sequence.cache.layers.back().length();

    measured.decode.run(model_, sequences, logits, question_.decode);
    note_peak(measured.decode_mib);
    say(concat(pruners.empty() ? "full" : "pruned", " answer: vision ", sequence.times.vision,
               " ms, prefill ", sequence.times.prefill, " ms, decoding ", measured.decode.times.values.back(),
               " ms"));
  }

  Samples vision;
  double peak_mib = 0;

 private:
  void note_peak(double& own) {
    const Memory memory = Memory::now();
    own = std::max(own, memory.peak_mib - memory.files_mib);
    peak_mib = std::max(peak_mib, memory.peak_mib);
    Memory::reset_peak();
  }

  const Question& question_;
  const Vlm& model_;
  Prompt prompt_;
};

Row prefill_row(const Question& question, const Samples& prefill, double flops, const Limits& limits) {
  return {.name = "prefill_ms",
          .value = prefill.best(),
          .unit = "ms",
          .median = prefill.median(),
          .share = limits.share_of_flops(flops, prefill.best()),
          .note = tera(flops),
          .goal = question.goals().prefill};
}

// `rows`: in the cache before the first step.
Row decode_row(const Question& question, const DecoderConfig& c, const Decoding& decoding, int64_t rows) {
  const Samples& decode = decoding.times;
  const double steps = question.decode;
  const double bytes =
      weight_bytes(c, question.bits()) + kv_row_bytes(c) * (static_cast<double>(rows) + (steps + 1) / 2);
  return {.name = "decode_tokens_per_s",
          .value = steps / decode.best() * 1e3,
          .unit = "tokens/s",
          .median = steps / decode.median() * 1e3,
          .share = bytes * steps / decode.best() * 1e3 / decoding.bytes_per_s,
          .note = concat(std::round(bytes / 1e7) / 100, " GB per token; the weights were read at ",
                         std::round(decoding.bytes_per_s / 1e8) / 10, " GB/s beside it"),
          .goal = question.goals().decode};
}

}  // namespace

std::string Question::bits() const {
  if (weights != "auto") return weights;
  const auto packing = Quantization::of(model_config(*this), "config.json");
  return packing.method == Quantization::Method::glimpse ? concat("int", packing.bits) : "bf16";
}

Question::Goals Question::goals() const {
  const std::string known = bits();
  if (known == "int8") return {share_at_least(0.6), share_at_least(0.9), at_least(3), at_most(10)};
  if (known == "int4") return {{}, share_at_least(0.85), {}, at_most(6.5)};
  return {share_at_least(0.8), share_at_least(0.9), at_least(5), {}};
}

VisionShape vision_shape(const Question& question) {
  return glimpse::vision_shape(model_config(question));
}

Grid patch_grid(const Question& question, const VisionShape& vision) {
  return patch_grid(question.visual, vision, question.frames);
}

Prompt make_prompt(const Question& question, const Vlm& model) {
  return make_prompt(model_config(question), question.visual, question.text, model, question.frames);
}

std::unique_ptr<Engine> load_engine(const Question& question) {
  EngineOptions options;
  options.model = (question.checkpoint / "model").string();
  options.new_modules = {(question.checkpoint / "new_modules").string()};
  options.threads = question.threads;
  options.weights = question.weights;
  return Engine::load(options);
}

void time_answers(const Question& question, const Limits& limits, Rows& rows) {
  const Timer timer;
  const std::unique_ptr<Engine> engine = load_engine(question);
  const double load = timer.ms();

  const PrunerChain pruners = make_pruners("glimpse", engine->pruner_context());
  Answers answers(question, engine->model());
  Measured full, pruned;
  for (int round = 0; round < question.rounds; ++round) {
    answers.answer({}, full);
    answers.answer(pruners, pruned);
  }

  const DecoderConfig& decoder = engine->model().decoder().config();
  const GlimpseConfig& modules = engine->modules()->config;
  const VisionShape vision = vision_shape(question);
  const double tokens = static_cast<double>(question.text + question.visual);
  check(full.rows == question.text + question.visual, "the cache holds ", full.rows, " rows after prefill");
  const double full_flops = prefill_flops(decoder, tokens);
  const double pruned_flops =
      pruned_prefill_flops(decoder, modules.vip, tokens, question.visual, pruned.rows, modules.reduce_layer);
  const double bound = full_flops / pruned_flops, speedup = full.prefill.best() / pruned.prefill.best();

  const auto timed = [&](const char* name, const Samples& samples, double flops, std::string note = {}) {
    const auto share = limits.share_of_flops(flops, samples.best());
    rows.add({name, samples.best(), "ms", samples.median(), share, {}, std::move(note)});
  };
  rows.add({.name = "load_ms",
            .value = load,
            .unit = "ms",
            .note = "warm; weights are mapped and read on first use"});
  rows.add({.name = "load_to_first_token_ms", .value = load + full.first_ms, .unit = "ms"});
  const double seen = vision_flops(vision, patch_grid(question, vision));
  timed("vision_ms", answers.vision, seen, tera(seen));
  rows.add(prefill_row(question, full.prefill, full_flops, limits));
  rows.add({"prefill_tokens_per_s", tokens / full.prefill.best() * 1e3, "tokens/s",
            tokens / full.prefill.median() * 1e3});
  timed("prefill_pruned_ms", pruned.prefill, pruned_flops,
        concat(tera(pruned_flops), ", ", pruned.rows - question.text, " of ", question.visual,
               " visual tokens kept after layer ", modules.reduce_layer));
  rows.add({.name = "prune_ms",
            .value = pruned.prune.best(),
            .unit = "ms",
            .median = pruned.prune.median(),
            .note = "predictor and compaction, part of prefill_pruned_ms"});
  rows.add({.name = "prefill_speedup",
            .value = speedup,
            .unit = "x",
            .share = speedup / bound,
            .note = "limit: the ratio of the operations",
            .goal = at_least(1.35)});
  rows.add({.name = "prefill_speedup_limit", .value = bound, .unit = "x"});

  rows.add(decode_row(question, decoder, full.decode, full.rows));
  Row after = decode_row(question, decoder, pruned.decode, pruned.rows);
  after.name = "decode_pruned_tokens_per_s";
  after.goal.reset();
  rows.add(std::move(after));

  const auto memory = [&](const std::string& name, double mib, std::string note = {}) {
    rows.add({.name = name, .value = mib, .unit = "MiB", .note = std::move(note)});
  };
  memory("kv_cache_mib", full.kv_mib);
  memory("kv_cache_pruned_mib", pruned.kv_mib);
  memory("vision_memory_mib", full.vision_mib, "peaks without mapped files, that is without weights");
  memory("prefill_memory_mib", full.prefill_mib);
  memory("prefill_pruned_memory_mib", pruned.prefill_mib);
  memory("decode_memory_mib", full.decode_mib);
  memory("peak_rss_mib", answers.peak_mib, "with weights");
}

Prompt make_text_prompt(const Question& question, const Vlm& model) {
  at::manual_seed(0);
  const int64_t length = question.visual + question.text;
  const at::Tensor ids = at::randint(0, 500, {length}, at::kLong);
  return model.prompt({ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + length}, {});
}

void time_decoder(const Question& question, const Engine& engine, const Limits& limits, Rows& rows) {
  const Vlm& model = engine.model();
  const Prompt prompt = make_text_prompt(question, model);
  const auto length = static_cast<int64_t>(prompt.ids.size());
  Samples prefills;
  Decoding decoding;
  for (int round = 0; round < question.rounds; ++round) {
    Sequence sequence;
    sequence.prompt = prompt;
    Sequence* const sequences[] = {&sequence};
    const at::Tensor logits = prefill(model, sequences);
    prefills.add(sequence.times.prefill);
    decoding.run(model, sequences, logits, question.decode);
    say(concat("prefill ", prefills.values.back(), " ms, decoding ", decoding.times.values.back(), " ms"));
  }
  const DecoderConfig& c = model.decoder().config();
  rows.add(prefill_row(question, prefills, prefill_flops(c, static_cast<double>(length)), limits));
  rows.add(decode_row(question, c, decoding, length));
}

}  // namespace glimpse::bench
