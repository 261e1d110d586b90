// Times glimpse on one accelerator at published shapes, beside what the device itself does: products of
// matrices, copies. Weights are random numbers made on the device, so nothing is read from disk.
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>

#include "bench/first_token.h"
#include "bench/profile.h"
#include "bench/random_model.h"
#include "bench/rows.h"
#include "bench/workload.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/eval/flops.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/device.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/modules.h"
#include "glimpse/train/optimiser.h"

namespace {

using namespace glimpse;
using namespace glimpse::bench;
using nlohmann::json;

struct Options {
  std::string device = "cuda", shape, shapes = "bench/shapes", configs = "configs/train", json_file, profile;
  std::vector<std::string> only = {"limits",    "decode", "prefill", "first_token",
                                   "attention", "batch",  "training"};
  std::vector<int64_t> sizes = {1024, 4096, 256, 16384};
  int64_t text = 30, steps = 32, together = 32, gemm = 8192, copy_mib = 4096, answer = 20, rounds = 3,
          examples = 8;
  double keep = 0.074, seconds = 1e9;
  bool plain = false, no_graphs = false;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        device_(parse_device(options.device)),
        shape_(read_json(std::filesystem::path(options.shapes) / (options.shape + ".json"))),
        narrow_(at::TensorOptions(at::kBFloat16).device(device_)) {}

  void run() {
    const at::NoGradGuard no_grad;
    cuda::use_kernels(!options_.plain);
    part("limits", [&] { limits(); });
    engine_ = random_engine(shape_, options_.configs, device_);
    row({.name = "weights_mib", .value = mib(device_bytes(device_)), .unit = "MiB"});
    for (const int64_t visual : sizes()) {
      if (visual <= 4096) part("decode", [&] { decode(visual, 1); });
      part("prefill", [&] { prefill_of(visual); });
      part("first_token", [&] { first_token(visual); });
      part("attention", [&] { attention(visual); });
    }
    part("batch", [&] { decode(sizes_least(), options_.together); });
    part("training", [&] { training(sizes()[0]); });
    rows_.print();
  }

 private:
  template <class Measure>
  void part(const char* name, const Measure& measure) {
    const auto& only = options_.only;
    if (std::find(only.begin(), only.end(), name) == only.end()) return;
    if (clock_.ms() > 1e3 * options_.seconds) {
      say(concat(name, ": left out, the time is up"));
      return;
    }
    try {
      measure();
    } catch (const c10::OutOfMemoryError&) {
      say(concat(name, ": the device has not enough memory"));
    }
    if (!options_.json_file.empty()) rows_.write(options_.json_file);
  }

  void row(Row row) {
    row.name = options_.shape + "_" + row.name;
    rows_.add(std::move(row));
  }
  static double mib(size_t bytes) { return static_cast<double>(bytes) / 1048576; }
  bool fixed_size() const { return shape_.at("model").at("model_type") == "llava"; }
  std::vector<int64_t> sizes() const { return fixed_size() ? std::vector<int64_t>{576} : options_.sizes; }
  int64_t sizes_least() const {
    const std::vector<int64_t> all = sizes();
    return *std::min_element(all.begin(), all.end());
  }

  // ms of each of `rounds` runs after a first one.
  template <class Run>
  Samples timed(const Run& run, int64_t rounds) const {
    Samples times;
    run();
    for (int64_t i = 0; i < rounds; ++i) {
      synchronise(device_);
      const Timer timer;
      run();
      synchronise(device_);
      times.add(timer.ms());
    }
    return times;
  }

  void limits() {
    const auto product = [&](int64_t m, int64_t k, int64_t n) {
      const at::Tensor x = at::randn({m, k}, narrow_), w = at::randn({n, k}, narrow_);
      const Samples times = timed([&] { return at::linear(x, w); }, 10);
      const double rate = 2.0 * static_cast<double>(m * k) * static_cast<double>(n) / times.median() * 1e3;
      row({.name = concat("gemm_", m, "x", k, "x", n), .value = rate / 1e12, .unit = "TFLOP/s"});
      flops_per_s_ = std::max(flops_per_s_, rate);
    };
    product(options_.gemm, options_.gemm, options_.gemm);
    const json& text = text_config(shape_.at("model"));
    const int64_t hidden = text.at("hidden_size"), wide = text.at("intermediate_size");
    for (const int64_t visual : {int64_t{1024}, int64_t{4096}}) product(visual + options_.text, hidden, wide);

    const int64_t count = options_.copy_mib << 19;
    const at::Tensor from = at::empty({count}, narrow_).normal_(), to = at::empty_like(from);
    const double bytes = 2.0 * static_cast<double>(count);
    const double copied = 2 * bytes / timed([&] { to.copy_(from); }, 10).median() * 1e3;
    row({.name = "copy", .value = copied / 1e9, .unit = "GB/s", .note = "read and written bytes"});
    copy_per_s_ = copied;
    const double read = bytes / timed([&] { from.sum(); }, 10).median() * 1e3;
    row({.name = "read", .value = read / 1e9, .unit = "GB/s", .note = "summed up"});
  }

  Prompt prompt(int64_t visual) const {
    return make_prompt(shape_.at("model"), visual, options_.text, engine_->model());
  }

  struct Prefilled {
    Sequence sequence;
    at::Tensor logits;
  };
  Prefilled prefilled(const Prompt& prompt, bool pruned) const {
    Prefilled out;
    out.sequence.prompt = prompt;
    if (pruned) out.sequence.pruners = make_pruners("glimpse", engine_->pruner_context());
    out.sequence.budget.keep = options_.keep;
    Sequence* const sequences[] = {&out.sequence};
    out.logits = prefill(engine_->model(), sequences);
    return out;
  }

  std::optional<double> share_of_flops(double flops, double ms) const {
    return flops_per_s_ > 0 ? std::optional(flops / ms * 1e3 / flops_per_s_) : std::nullopt;
  }

  void prefill_of(int64_t visual) {
    const Prompt asked = prompt(visual);
    const DecoderConfig& c = engine_->model().decoder().config();
    const GlimpseConfig& modules = engine_->modules()->config;
    const auto tokens = static_cast<double>(asked.ids.size());
    reset_peak_bytes(device_);
    const size_t before = device_bytes(device_);
    Samples seen, full, pruned, prune;
    int64_t left = 0;
    size_t kv[2] = {0, 0};
    const int64_t rounds = visual > 8192 ? 1 : options_.rounds;
    for (int64_t round = 0; round <= rounds; ++round) {
      const Sequence one = prefilled(asked, false).sequence, other = prefilled(asked, true).sequence;
      kv[0] = one.cache.bytes();
      kv[1] = other.cache.bytes();
      left = other.cache.layers.back().length();
      if (round == 0) continue;  // warm now
      seen.add(one.times.vision);
      full.add(one.times.prefill);
      pruned.add(other.times.prefill);
      prune.add(other.times.prune);
    }
    const size_t peak = peak_device_bytes(device_) - before;
    const auto at = [&](const char* what) { return concat(what, "_", visual); };
    const double flops = prefill_flops(c, tokens),
                 pruned_flops = pruned_prefill_flops(c, modules.vip, tokens, static_cast<double>(visual),
                                                     static_cast<double>(left),
                                                     static_cast<double>(modules.reduce_layer));
    const double encoder = vision_flops(glimpse::vision_shape(shape_.at("model")), asked.patches[0].grid);
    row({at("vision_ms"), seen.best(), "ms", seen.median(), share_of_flops(encoder, seen.best())});
    row({at("prefill_ms"),
         full.best(),
         "ms",
         full.median(),
         share_of_flops(flops, full.best()),
         {},
         {},
         visual == 1024 || visual == 4096 ? std::optional(share_at_least(0.6)) : std::nullopt});
    row({at("prefill_pruned_ms"),
         pruned.best(),
         "ms",
         pruned.median(),
         share_of_flops(pruned_flops, pruned.best()),
         {},
         concat(left - (std::ssize(asked.ids) - visual), " visual tokens left after layer ",
                modules.reduce_layer)});
    row({at("prune_ms"), prune.best(), "ms", prune.median(), {}, {}, "part of prefill_pruned_ms"});
    row({.name = at("pruned_of_full"),
         .value = pruned.best() / full.best(),
         .unit = "of prefill_ms",
         .note = concat("operations: ", std::round(1000 * pruned_flops / flops) / 1000),
         .goal = visual == 4096 ? std::optional(at_most(0.75)) : std::nullopt});
    row({.name = at("prefill_memory_mib"),
         .value = mib(peak),
         .unit = "MiB",
         .note = "peak above the weights"});
    row({.name = at("kv_mib"), .value = mib(kv[0]), .unit = "MiB"});
    row({.name = at("kv_pruned_mib"), .value = mib(kv[1]), .unit = "MiB"});
    if (profiled("prefill", visual))
      show_profile(concat("prefill of ", visual, " visual tokens"), device_,
                   [&] { prefilled(asked, false); });
    if (profiled("pruned", visual))
      show_profile(concat("pruned prefill of ", visual, " visual tokens"), device_,
                   [&] { prefilled(asked, true); });
  }

  void first_token(int64_t visual) {
    rows_.set_prefix(concat(options_.shape, "_", visual, "_"));
    time_first_token(prompt(visual), options_.keep, options_.rounds + 1, *engine_, rows_);
    rows_.set_prefix("");
    if (!profiled("scouted", visual)) return;
    Sequence sequence;
    sequence.prompt = prompt(visual);
    sequence.pruners = make_pruners("scout(threshold=1,floor=0.25)+glimpse", engine_->pruner_context());
    sequence.budget.keep = options_.keep;
    show_profile(concat("to the first token of ", visual, " visual tokens by scout and glimpse"), device_,
                 [&] {
                   Sequence one = sequence;
                   Sequence* const sequences[] = {&one};
                   prefill(engine_->model(), sequences);
                 });
  }

  bool profiled(const char* what, int64_t visual) const {
    return options_.profile.find(concat(what, "_", visual)) != std::string::npos;
  }

  // Steps of greedy decoding, `count` copies of a sequence together; each step ends with the tokens on the
  // host.
  void decode(int64_t visual, int64_t count) {
    const Vlm& model = engine_->model();
    const DecoderConfig& c = model.decoder().config();
    const Prompt asked = prompt(visual);
    const Prefilled first = prefilled(asked, false);
    const int64_t rows = first.sequence.cache.layers.back().length();
    Samples times;
    std::vector<Sequence> copies(static_cast<size_t>(count), first.sequence);
    std::vector<Sequence*> sequences;
    for (Sequence& copy : copies) sequences.push_back(&copy);
    std::vector<int64_t> tokens(static_cast<size_t>(count), first.logits.argmax().item<int64_t>());
    const auto step = [&] {
      const at::Tensor next =
          decode_step(model, sequences, tokens, options_.no_graphs ? nullptr : &engine_->decode_graphs())
              .argmax(1)
              .cpu();
      tokens.assign(next.const_data_ptr<int64_t>(), next.const_data_ptr<int64_t>() + count);
    };
    for (int i = 0; i < 3; ++i) step();
    for (int64_t round = 0; round < options_.rounds; ++round) {
      const Timer timer;
      for (int64_t i = 0; i < options_.steps; ++i) step();
      times.add(timer.ms() / static_cast<double>(options_.steps));
    }
    const double bytes =
        weight_bytes(c, "bf16") + kv_row_bytes(c) * static_cast<double>(count) *
                                      (static_cast<double>(rows) + static_cast<double>(options_.steps));
    const std::string name =
        count == 1 ? concat("decode_ms_", visual) : concat("decode_batch", count, "_ms_", visual);
    row({.name = name,
         .value = times.best(),
         .unit = "ms",
         .median = times.median(),
         .share = copy_per_s_ > 0 ? std::optional(bytes / times.best() * 1e3 / copy_per_s_) : std::nullopt,
         .note = concat("a step reads ", std::round(bytes / 1e7) / 100, " GB"),
         .goal = count == 1 ? std::optional(share_at_least(0.65)) : std::nullopt});
    if (count == 1 && (alone_ms_ == 0 || visual == sizes_least())) alone_ms_ = times.best();
    if (count > 1 && alone_ms_ > 0)
      row({.name = concat("decode_batch", count, "_gain"),
           .value = static_cast<double>(count) * alone_ms_ / times.best(),
           .unit = "x",
           .note = "tokens per second over those of one sequence",
           .goal = at_least(10)});
    if (profiled(count == 1 ? "decode" : "batch", visual))
      show_profile(concat("a decoding step of ", count, " behind ", visual, " visual tokens"), device_, step);
  }

  void attention(int64_t visual) {
    const DecoderConfig& c = engine_->model().decoder().config();
    const int64_t rows = visual + options_.text;
    LayerCache cache;
    cache.append(at::randn({rows, c.kv_heads, c.head_dim}, narrow_),
                 at::randn({rows, c.kv_heads, c.head_dim}, narrow_));
    const at::Tensor q = at::randn({rows, c.heads, c.head_dim}, narrow_);
    const Samples times = timed([&] { causal_attention(q, cache); }, 5);
    const double flops =
        2.0 * static_cast<double>(c.heads * c.head_dim * rows) * static_cast<double>(rows + 1);
    const auto library = [&] {
      const auto one = [](const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
      return at::scaled_dot_product_attention(one(q), cache.keys().unsqueeze(0), cache.values().unsqueeze(0),
                                              {}, 0.0, true, {}, true);
    };
    synchronise(device_);
    const Timer first;
    library();
    synchronise(device_);
    const double once = first.ms();
    const Samples other = timed(library, 5);
    row({concat("attention_library_ms_", visual),
         other.best(),
         "ms",
         other.median(),
         {},
         {},
         concat("what libtorch itself chooses; the first call took ", once, " ms")});
    row({concat("attention_ms_", visual), times.best(), "ms", times.median(),
         share_of_flops(flops, times.best())});
  }

  void training(int64_t visual) {
    const at::AutoGradMode grad(true);
    const Vlm& model = engine_->model();
    json config = shape_.at("model");
    config.update(shape_.at("new_modules"));
    const TrainableModules modules = TrainableModules::create(config, base_shape(model), 0, device_);
    Optimiser optimiser(modules.parameters(), {});
    Example example;
    example.prompt = prompt(visual);
    for (int64_t i = 0; i < options_.answer; ++i) example.answer.push_back((11 * i + 5) % 500);
    example.reference = (at::rand({visual}) < 0.05).to(at::kFloat);
    const std::vector<Example> examples(static_cast<size_t>(options_.examples), example);
    reset_peak_bytes(device_);
    const size_t before = device_bytes(device_);
    const auto step = [&] {
      const auto loss =
          training_losses(model, modules.modules(model.decoder().options(), modules.dropout()), examples, {});
      at::Tensor total = loss[0].total;
      for (size_t i = 1; i < loss.size(); ++i) total = total + loss[i].total;
      (total / static_cast<double>(loss.size())).backward();
      optimiser.step(0.0);
    };
    const Samples times = timed(step, options_.rounds);
    const double hours = 20000 * times.median() / static_cast<double>(options_.examples) / 3.6e6;
    row({.name = "training_step_ms",
         .value = times.best(),
         .unit = "ms",
         .median = times.median(),
         .note = concat(options_.examples, " examples together, each of ", visual, " visual tokens and ",
                        options_.answer, " of the answer")});
    row({.name = "training_hours",
         .value = hours,
         .unit = "h",
         .note = "for 20,000 such examples",
         .goal = at_most(1)});
    row({.name = "training_memory_mib",
         .value = mib(peak_device_bytes(device_) - before),
         .unit = "MiB",
         .note = "peak above the weights"});
    if (profiled("training", visual)) show_profile("a training step", device_, step);
  }

  const Options& options_;
  const at::Device device_;
  const json shape_;
  const at::TensorOptions narrow_;
  const Timer clock_;
  std::unique_ptr<Engine> engine_;
  Rows rows_;
  double flops_per_s_ = 0, copy_per_s_ = 0, alone_ms_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times glimpse on an accelerator with random weights, beside the device's own rates",
               "glimpse_device_bench"};
  app.option_defaults()->always_capture_default();
  app.add_option("--device", options.device, "cuda, cuda:i or cpu");
  app.add_option("--shape", options.shape, "model: a file of bench/shapes without .json")->required();
  app.add_option("--shapes", options.shapes, "folder of these files");
  app.add_option("--configs", options.configs, "folder of training configs, with the scouts' shapes");
  app.add_option("--only", options.only, "parts to run; shares need limits");
  app.add_option("--sizes", options.sizes, "visual tokens, in the order of measuring");
  app.add_option("--text", options.text, "text tokens, those around the image included")
      ->check(CLI::Range(12, 4096));
  app.add_option("--examples", options.examples, "examples of a training step")->check(CLI::Range(1, 1024));
  app.add_option("--steps", options.steps, "decoding steps")->check(CLI::Range(1, 4096));
  app.add_option("--together", options.together, "sequences of the batch")->check(CLI::Range(1, 4096));
  app.add_option("--gemm", options.gemm, "side of the square product")->check(CLI::Range(16, 32768));
  app.add_option("--copy-mib", options.copy_mib, "size of the copy")->check(CLI::Range(1, 32768));
  app.add_option("--rounds", options.rounds, "rounds; the best and the median are shown")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seconds", options.seconds, "start nothing more after this time");
  app.add_flag("--plain", options.plain, "without our own kernels, by libtorch's operations alone");
  app.add_flag("--no-graphs", options.no_graphs, "decode without recorded steps");
  app.add_option("--profile", options.profile,
                 "also list the kernels of prefill_N, pruned_N, scouted_N, decode_N, batch_N or training_N "
                 "(comma-separated)");
  app.add_option("--json", options.json_file, "write the rows here");
  CLI11_PARSE(app, argc, argv);
  try {
    Bench(options).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "glimpse_device_bench: %s\n", error.what());
    return 1;
  }
}
