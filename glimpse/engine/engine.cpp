#include "glimpse/engine/engine.h"

#include <ATen/Context.h>

#include <cmath>
#include <mutex>

#include "glimpse/base/json_file.h"
#include "glimpse/engine/memory_need.h"
#include "glimpse/engine/packed_copy.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/models/config.h"
#include "glimpse/nn/target.h"

namespace glimpse {

namespace {

using nlohmann::json;

SamplingOptions sampling_defaults(const json& config, const std::string& where) {
  SamplingOptions options;
  if (setting(config, "do_sample", false, where)) {
    options.temperature = setting(config, "temperature", 1.0, where);
    options.top_p = setting(config, "top_p", 1.0, where);
    options.top_k = setting(config, "top_k", int64_t{50}, where);
  }
  options.repetition_penalty = setting(config, "repetition_penalty", 1.0, where);
  return options;
}

// For the whole process: kernels must not change under an engine that is running.
void choose_kernels(const std::string& name) {
  static std::mutex mutex;
  static std::string chosen;
  const std::lock_guard lock(mutex);
  if (chosen.empty()) {
    use_kernels(name);
    chosen = name;
  }
  check(name == "auto" || name == chosen, "kernels: ", name,
        " was asked for, but an engine of this process was loaded with ", chosen,
        "; all of them share one choice");
}

}  // namespace

Fields EngineOptions::fields() {
  Fields fields;
  fields
      .add(
          "model", model,
          "model directory, hub id (org/name, org/name@revision, or of GGUF files org/name:Q4_K_M), or .gguf "
          "file (default: the built-in model)")
      .shown_as("DIR", 'm')
      .add("mmproj", mmproj,
           "the vision encoder's .gguf file, for a --model that is one (default: the one *mmproj* file "
           "beside it)")
      .shown_as("FILE")
      .add("new_modules", new_modules,
           "directory of the pruning modules (config.json, new_modules_gp.pt or .safetensors); with a name, "
           "as "
           "in coarse=DIR, for glimpse(modules=coarse) (repeatable)")
      .shown_as("DIR", 0, true)
      .add("clip", clip,
           "a whole CLIP, for its text tower (cdpruner), beside a LLaVA whose own encoder comes without")
      .shown_as("DIR")
      .add("adapter", adapters, "PEFT adapter directory to merge into the model (repeatable)")
      .shown_as("DIR", 0, true)
      .add("dtype", dtype, "arithmetic; auto: fp32 for a checkpoint saved in it, else bf16")
      .one_of({"auto", "bf16", "fp32"})
      .add("weights", weights,
           "bits of the linear layers' weights; auto: as stored, which on the CPU keeps what GGUF, AWQ and "
           "GPTQ have in few bits in 4 or 8, bf16: not quantised, int8 and int4: rounded at load (`glimpse "
           "quantize` does it once)")
      .one_of({"auto", "bf16", "int8", "int4"})
      .add("kv", kv, "bits of the KV cache; bf16: as computed, in --dtype; int8 and int4: rounded, CPU only")
      .one_of({"bf16", "int8", "int4"})
      .add("device", device, "cpu, cuda or cuda:i")
      .add("kernels", kernels, "best instruction set for our own CPU kernels")
      .one_of({"auto", "avx512", "avx2", "sse4", "scalar"})
      .add("threads", threads, "CPU threads (0: one per core)", {0, 4096})
      .shown_as("N", 't');
  return fields;
}

json StageTimes::to_json() const {
  const auto round = [](double ms) { return std::round(ms * 1000) / 1000; };
  return {{"vision", round(vision)},
          {"prefill", round(prefill)},
          {"prune", round(prune)},
          {"decode", round(decode)}};
}

double Answer::kept_share() const {
  return visual_tokens > 0 ? static_cast<double>(kept_tokens) / static_cast<double>(visual_tokens) : 0;
}

double Answer::decode_rate() const {
  return times.decode > 0 && ids.size() > 1 ? 1000.0 * static_cast<double>(ids.size() - 1) / times.decode
                                            : 0.0;
}

BaseShape base_shape(const Vlm& model) {
  const DecoderConfig& c = model.decoder().config();
  return {c.layers, c.hidden_size, c.heads, model.vision_depth(), model.vision_width(), c.rms_norm_eps};
}

Reuse parse_reuse(const std::string& name) {
  if (name == "auto") return Reuse::automatic;
  if (name == "never") return Reuse::never;
  check(name == "always", "reuse: expected auto, never or always, got '", name, "'");
  return Reuse::always;
}

at::Device parse_device(const std::string& name) {
  const bool known = name == "cpu" || name == "cuda" ||
                     (name.starts_with("cuda:") && name.size() > 5 &&
                      name.find_first_not_of("0123456789", 5) == std::string::npos && name.size() < 9) ||
                     // What the program itself has made known to libtorch.
                     (c10::is_privateuse1_backend_registered() && name == c10::get_privateuse1_backend());
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

std::vector<std::pair<std::string, std::filesystem::path>> module_dirs(const EngineOptions& options) {
  std::vector<std::pair<std::string, std::filesystem::path>> sets;
  for (const std::string& given : options.new_modules) {
    // A path may have an equals sign; a name has nothing that only paths have.
    const size_t equals = given.find('=');
    const bool named = equals != std::string::npos && equals > 0 && given.find_first_of("/\\.") > equals &&
                       !std::filesystem::exists(given);
    const std::string name = named ? given.substr(0, equals) : "";
    for (const auto& [other, dir] : sets)
      check(other != name,
            "new_modules: ", name.empty() ? "two sets have no name" : "two sets are named " + name,
            "; name them as in coarse=DIR");
    const auto dir = resolve_model_dir(named ? given.substr(equals + 1) : given);
    sets.emplace(name.empty() ? sets.begin() : sets.end(), name, dir);
  }
  if (sets.empty() && options.model.empty()) sets.emplace_back("", builtin_model_dir() / "new_modules");
  return sets;
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
  if (!options.clip.empty()) load.clip = resolve_model_dir(options.clip);
  for (const std::string& adapter : options.adapters) load.adapters.push_back(resolve_model_dir(adapter));
  return load;
}

Engine::Engine(std::unique_ptr<Vlm> model, ModuleSets modules, std::unique_ptr<PrefixCache> cache)
    : model_(std::move(model)),
      modules_(std::move(modules)),
      prefix_cache_(std::move(cache)),
      decode_graphs_(std::make_unique<DecodeGraphs>()) {}

namespace {

json content_of(const EngineOptions& options, const ModelSource& source) {
  json content = {{"model", weights_fingerprint(source.path())}};
  if (const auto mmproj = source.mmproj(); !mmproj.empty()) content["mmproj"] = weights_fingerprint(mmproj);
  for (const auto& [name, dir] : module_dirs(options))
    content["new_modules"][name] = weights_fingerprint(dir);
  if (!options.clip.empty()) content["clip"] = weights_fingerprint(resolve_model_dir(options.clip));
  for (const std::string& adapter : options.adapters)
    content["adapters"].push_back(weights_fingerprint(resolve_model_dir(adapter)));
  return content;
}

// What layers that are kept in few bits depend on.
std::string weights_origin(const json& content) {
  return json_text({content["model"], content.value("mmproj", json()), content.value("adapters", json())});
}

// Beside pictures and questions.
std::string prefix_origin(const EngineOptions& options, const LoadOptions& load, const json& content) {
  const json origin = {{"content", content},
                       {"dtype", c10::toString(load.dtype)},
                       {"weights", options.weights},
                       {"kv", options.kv},
                       {"device", load.device.is_cpu() ? "cpu" : "cuda"},
                       {"build", options.cache_build}};
  return json_text(origin);
}

}  // namespace

json content_of(const EngineOptions& options) {
  return content_of(options, *model_source(options));
}

std::unique_ptr<Engine> Engine::load(const EngineOptions& options) {
  if (options.threads >= 0) set_threads(options.threads);
  choose_kernels(options.kernels);
  const std::unique_ptr<ModelSource> source = model_source(options);
  const auto sets = module_dirs(options);

  const json config = source->config();
  LoadOptions load = load_options(options, config);
  const KvFormat kv = parse_kv_format(options.kv);
  if (!sets.empty()) load.config_overrides = read_json(sets[0].second / "config.json");

  check_fits(*source, load, kv);
  const auto folder = open_cache_folder(options.cache_dir, options.cache_disk_gb);
  const json content = options.cache_dir.empty() ? json() : content_of(options, *source);
  PackedCopy copy(folder, content.is_null() ? "" : weights_origin(content), load.weights);
  std::unique_ptr<Vlm> model = load_vlm(*source, load);
  copy.finish();
  check_kv_format(kv, model->decoder().config().head_dim, load.device);
  ModuleSets modules;
  for (const auto& [name, dir] : sets) {
    const BaseShape shape = base_shape(*model);
    const json own = read_json(dir / "config.json");
    const auto scout = [&](const char* member) {
      return Scout::load(dir, own, member, shape.hidden_size, shape.vision_width, shape.vision_depth,
                         load.device);
    };
    const auto before = scout("scout"), within = scout("encoder_scout");
    // A folder with a scout need not have more.
    const bool glimpse = (!before && !within) || own.contains("attn_fuse_type");
    modules.add(name, glimpse ? GlimpseModules::load(dir, shape, model->decoder().options()) : nullptr,
                before, within);
  }
  auto cache = make_prefix_cache(options.cache_mb, folder, load.device,
                                 [&] { return prefix_origin(options, load, content); });
  auto engine = std::make_unique<Engine>(std::move(model), modules, std::move(cache));
  engine->kv_ = kv;

  constexpr const char* file = "generation_config.json";
  json generate = source->settings(file);
  if (generate.is_null()) generate = json::object();
  check(generate.is_object(), source->where(file), ": expected a JSON object");
  engine->default_sampling_ = sampling_defaults(generate, source->where(file));
  const bool own = generate.contains("eos_token_id");
  engine->stop_ids_ = end_ids(own ? generate : config, source->where(own ? file : "config.json"));
  return engine;
}

std::string Engine::default_prune(bool once) const {
  const bool scout = modules_.find_scout("") != nullptr;
  if (!modules_.find("")) return scout ? "scout" : "none";
  return scout && once ? "scout+glimpse" : "glimpse";
}

Answer Engine::ask(const Request& request) const {
  return std::move(ask(std::span(&request, 1))[0]);
}

std::vector<Answer> Engine::ask(std::span<const Request> requests) const {
  if (requests.empty()) return {};
  Scheduler scheduler(*this, {.max_sequences = std::ssize(requests), .waiting_bytes = 0});
  std::exception_ptr first_error;
  const auto noting_errors = [&](const auto& work) {
    try {
      work();
    } catch (...) {
      if (!first_error) first_error = std::current_exception();
    }
  };
  std::vector<std::future<Answer>> futures;
  for (const Request& request : requests)
    noting_errors([&] { futures.push_back(scheduler.submit(request)); });
  scheduler.run();
  std::vector<Answer> answers;
  for (std::future<Answer>& future : futures) noting_errors([&] { answers.push_back(future.get()); });
  if (first_error) std::rethrow_exception(first_error);
  return answers;
}

}  // namespace glimpse
