#include "glimpse/engine/engine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/nn/target.h"

namespace glimpse {

namespace {

using nlohmann::json;

SamplingOptions sampling_defaults(const json& config) {
  SamplingOptions options;
  if (config.value("do_sample", false)) {
    options.temperature = config.value("temperature", 1.0);
    options.top_p = config.value("top_p", 1.0);
    options.top_k = config.value("top_k", int64_t{50});
  }
  options.repetition_penalty = config.value("repetition_penalty", 1.0);
  return options;
}

std::vector<int64_t> end_ids(const json& config) {
  const json& ids = member(config, "eos_token_id");
  if (ids.is_null()) return {};
  return ids.is_array() ? ids.get<std::vector<int64_t>>() : std::vector<int64_t>{ids.get<int64_t>()};
}

// One request on its way to its answer.
struct Run {
  const Request& request;
  Sequence sequence;
  Sampler sampler;
  StreamDecoder decoder;
  std::vector<int64_t> seen;
  Answer answer;
};

}  // namespace

Fields EngineOptions::fields() {
  Fields fields;
  fields
      .add("model", model,
           "model directory, hub id in the local Hugging Face cache, or .gguf file (default: the built-in "
           "model)")
      .add("mmproj", mmproj, "the vision encoder's .gguf file, for a model that is one")
      .add("new_modules", new_modules, "directory of the pruning modules (config.json, new_modules_gp.pt)")
      .add("adapter", adapters, "PEFT adapter directory to merge (repeatable)")
      .add("dtype", dtype, "arithmetic: auto (fp32 for a checkpoint saved in it, else bf16), bf16 or fp32")
      .add("weights", weights,
           "bits of the linear layers' weights: auto (as stored), bf16 (as --dtype), int8 or int4")
      .add("device", device, "cpu, cuda or cuda:i")
      .add("kernels", kernels, "CPU kernels: auto, or at most avx512, avx2, sse4 or scalar")
      .add("threads", threads, "CPU threads (0: one per core)", {0, 4096});
  return fields;
}

double Answer::decode_rate() const {
  return times.decode > 0 && ids.size() > 1 ? 1000.0 * static_cast<double>(ids.size() - 1) / times.decode
                                            : 0.0;
}

BaseShape base_shape(const Vlm& model) {
  const DecoderConfig& c = model.decoder().config();
  return {c.layers, c.hidden_size, c.heads, model.vision_depth(), model.vision_width(), c.rms_norm_eps};
}

at::Device parse_device(const std::string& name) {
  const bool known = name == "cpu" || name == "cuda" ||
                     (name.starts_with("cuda:") && name.size() > 5 &&
                      name.find_first_not_of("0123456789", 5) == std::string::npos && name.size() < 9);
  check(known, "device: expected cpu, cuda or cuda:i, got '", name, "'");
  const at::Device device(name);
  check(!device.is_cuda() || at::globalContext().hasCUDA(), "device: ", name,
        " was asked for, but this program's libtorch finds no usable CUDA device");
  return device;
}

WeightOptions::Format parse_weight_format(const std::string& name) {
  using enum WeightOptions::Format;
  for (const auto& [known, format] :
       {std::pair{"auto", stored}, {"bf16", plain}, {"int8", int8}, {"int4", int4}})
    if (name == known) return format;
  fail("weights: expected auto, bf16, int8 or int4, got '", name, "'");
}

std::unique_ptr<ModelSource> model_source(const EngineOptions& options) {
  if (!options.model.empty()) return open_model(options.model, options.mmproj);
  check(options.mmproj.empty(), "--mmproj belongs to a --model that is a .gguf file");
  return open_model_dir(builtin_model_dir() / "model");
}

LoadOptions load_options(const EngineOptions& options, const json& config) {
  LoadOptions load;
  check(options.dtype == "auto" || options.dtype == "bf16" || options.dtype == "fp32",
        "dtype: expected auto, bf16 or fp32, got '", options.dtype, "'");
  load.dtype = options.dtype == "auto"   ? checkpoint_dtype(config)
               : options.dtype == "fp32" ? at::kFloat
                                         : at::kBFloat16;
  load.device = parse_device(options.device);
  load.weights.format = parse_weight_format(options.weights);
  for (const std::string& adapter : options.adapters) load.adapters.push_back(resolve_model_dir(adapter));
  return load;
}

std::unique_ptr<Engine> Engine::load(const EngineOptions& options) {
  set_threads(options.threads);
  use_kernels(options.kernels);
  const std::unique_ptr<ModelSource> source = model_source(options);
  std::filesystem::path new_modules;
  if (!options.new_modules.empty())
    new_modules = resolve_model_dir(options.new_modules);
  else if (options.model.empty())
    new_modules = builtin_model_dir() / "new_modules";

  const json config = source->config();
  LoadOptions load = load_options(options, config);
  if (!new_modules.empty()) load.config_overrides = read_json(new_modules / "config.json");

  std::unique_ptr<Vlm> model = load_vlm(*source, load);
  std::shared_ptr<const GlimpseModules> modules;
  if (!new_modules.empty())
    modules = GlimpseModules::load(new_modules, base_shape(*model), model->decoder().options());
  auto engine = std::make_unique<Engine>(std::move(model), modules);

  try {
    json generate = source->settings("generation_config.json");
    if (generate.is_null()) generate = json::object();
    engine->default_sampling_ = sampling_defaults(generate);
    engine->stop_ids_ = end_ids(generate.contains("eos_token_id") ? generate : config);
  } catch (const json::exception& error) {
    fail(source->where("generation_config.json"), ": ", error.what());
  }
  return engine;
}

std::string Engine::default_prune() const {
  return modules_ ? "glimpse" : "none";
}

Answer Engine::ask(const Request& request) const {
  return std::move(ask(std::span(&request, 1))[0]);
}

std::vector<Answer> Engine::ask(std::span<const Request> requests) const {
  if (requests.empty()) return {};
  const Tokenizer& tokenizer = model_->tokenizer();
  std::vector<Run> runs;
  runs.reserve(requests.size());
  for (const Request& request : requests) {
    check(request.max_new_tokens > 0, "max_new_tokens: ", request.max_new_tokens, " is not positive");
    Run& run = runs.emplace_back(
        Run{request, Sequence(), Sampler(request.sampling), StreamDecoder(tokenizer), {}, {}});
    run.sequence.prompt = model_->prompt(request.messages, request.images, request.bounds);
    run.sequence.pruners =
        make_pruners(request.prune == "auto" ? default_prune() : request.prune, pruner_context());
    run.sequence.budget = request.budget;
    run.sequence.boxes = request.boxes;
    run.sequence.stop = request.stop;
    run.seen = run.sequence.prompt.ids;
  }
  std::vector<Sequence*> sequences;
  for (Run& run : runs) sequences.push_back(&run.sequence);

  const auto finish = [](Run& run, const char* reason) { run.answer.finish_reason = reason; };
  const auto accept = [&](Run& run, const at::Tensor& logits) {
    const int64_t id = run.sampler.next(logits, run.seen);
    const bool end = std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end();
    if (end && !run.request.ignore_eos) return finish(run, "stop");
    run.answer.ids.push_back(id);
    run.seen.push_back(id);
    const std::string text = run.decoder.push(id);
    run.answer.text += text;
    if (run.request.on_text && !text.empty()) run.request.on_text(text);
    if (static_cast<int64_t>(run.answer.ids.size()) >= run.request.max_new_tokens ||
        run.sequence.next_position >= model_->max_positions())
      finish(run, "length");
  };

  try {
    at::Tensor logits = prefill(*model_, sequences);
    for (Run& run : runs) run.answer.kv_bytes = run.sequence.cache.bytes();
    const Timer timer;
    std::vector<Run*> active;
    for (Run& run : runs) active.push_back(&run);
    while (!active.empty()) {
      for (size_t i = 0; i < active.size(); ++i) {
        if (active[i]->request.stop.stop_requested()) throw Cancelled();
        accept(*active[i], logits[static_cast<int64_t>(i)]);
      }
      std::erase_if(active, [&](Run* run) {
        if (run->answer.finish_reason.empty()) return false;
        run->sequence.times.decode = timer.ms();
        run->sequence.cache = KvCache();
        return true;
      });
      if (active.empty()) break;
      sequences.clear();
      std::vector<int64_t> tokens;
      for (Run* run : active) {
        sequences.push_back(&run->sequence);
        tokens.push_back(run->answer.ids.back());
      }
      logits = decode_step(*model_, sequences, tokens);
    }
  } catch (const Cancelled&) {
    for (Run& run : runs)
      if (run.answer.finish_reason.empty()) finish(run, "cancelled");
  }

  std::vector<Answer> answers;
  for (Run& run : runs) {
    const std::string rest = run.decoder.flush();
    if (run.request.on_text && !rest.empty()) run.request.on_text(rest);
    Answer& answer = run.answer;
    answer.text += rest;
    answer.times = run.sequence.times;
    answer.images = run.sequence.prompt.images;
    answer.prompt_tokens = static_cast<int64_t>(run.sequence.prompt.ids.size());
    answer.visual_tokens = static_cast<int64_t>(run.sequence.prompt.visual_rows.size());
    answer.kept_tokens = static_cast<int64_t>(run.sequence.kept.size());
    answer.keep.resize(answer.images.size());
    for (const int64_t token : run.sequence.kept)
      for (size_t i = answer.images.size(); i-- > 0;)
        if (token >= answer.images[i].first) {
          answer.keep[i].push_back(token - answer.images[i].first);
          break;
        }
    if (run.sequence.scores.defined()) {
      const float* score = run.sequence.scores.const_data_ptr<float>();
      answer.scores.assign(score, score + run.sequence.scores.numel());
    }
    answer.pruning = json::array();
    for (const auto& pruner : run.sequence.pruners)
      answer.pruning.push_back({{"method", pruner->name()}, {"settings", pruner->settings()}});
    answers.push_back(std::move(answer));
  }
  return answers;
}

}  // namespace glimpse
