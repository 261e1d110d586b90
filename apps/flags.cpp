#include "flags.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <mutex>
#include <regex>
#include <thread>

#include "built_from.h"
#include "glimpse/engine/memory_need.h"
#include "glimpse/eval/grid.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/models/video_settings.h"

namespace glimpse::app {

namespace {

std::string dashed(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// "1:02:03.5" in seconds; anything else stays as it is.
std::string in_seconds(const std::string& text) {
  static const std::regex clock("(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,6}(?:[.][0-9]{1,9})?)");
  std::smatch parts;
  if (!std::regex_match(text, parts, clock)) return text;
  const double hours = parts[1].matched ? std::stod(parts[1]) : 0;
  return concat(std::setprecision(15), hours * 3600 + std::stod(parts[2]) * 60 + std::stod(parts[3]));
}

std::string method_names() {
  std::string names;
  for (const PrunerInfo& info : known_pruners({})) names += (names.empty() ? "" : ", ") + info.name;
  return names;
}

std::mutex g_mutex;
std::stop_source g_stop;
bool g_armed = false;

}  // namespace

void SettingFlags::add(CLI::App& app, Fields fields, const std::string& group, const std::string& else_where,
                       const std::set<std::string>& without) {
  const auto checked = [](const auto& take) {
    try {
      take();
    } catch (const Error& error) {
      throw CLI::ValidationError(error.what());
    }
  };
  for (const Field& field : fields.list()) {
    if (without.contains(field.name)) continue;
    const std::string letter = field.letter ? concat("-", field.letter, ",") : "";
    const std::string flag = letter + "--" + dashed(field.name), help = field.about(else_where);
    CLI::Option* option = nullptr;
    if (field.repeats)
      option = app.add_option_function<std::vector<std::string>>(
          flag, [=](const auto& items) { checked([&] { field.set(items); }); }, help);
    else
      option = app.add_option_function<std::string>(
          flag,
          [=, values = values_](const std::string& given) {
            const std::string text = field.kind == "TIME" ? in_seconds(given) : given;
            checked([&] { Fields(fields).set(field.name, text, "command line"); });
            (*values)[field.name] = text;
          },
          help);
    option->type_name(field.kind)->group(group)->allow_extra_args(false);
  }
}

void SettingFlags::apply(Fields fields) const {
  for (const auto& [name, text] : *values_) fields.set(name, text, "--" + dashed(name));
}

Fetching add_model_flags(CLI::App& app, EngineOptions& options) {
  options.threads = 0;
  SettingFlags().add(app, options.fields(), "Model");
  app.add_flag_callback(
         "--no-memory-check", [] { check_memory(false); },
         "load a model even if it is larger than the memory that is available (or set "
         "GLIMPSE_MEMORY_CHECK=0)")
      ->group("Model");
  Fetching fetching;
  fetching.add(app);
  return fetching;
}

nlohmann::json model_settings(const EngineOptions& options) {
  const bool builtin = options.model.empty();
  nlohmann::json settings = {
      {"model", builtin ? "built-in" : options.model},
      {"mmproj", options.mmproj},
      {"new_modules", options.new_modules.size() == 1 ? nlohmann::json(options.new_modules[0])
                                                      : nlohmann::json(options.new_modules)},
      {"clip", options.clip},
      {"adapters", options.adapters},
      {"dtype", options.dtype},
      {"weights", options.weights}};
  if (options.kv != "bf16") settings["kv"] = options.kv;  // runs from before it could be anything else go on
  settings["content"] = content_of(options);
  return settings;
}

const std::set<std::string> kModelPlaces = {"model", "mmproj", "new_modules", "clip", "adapters"};

void add_cache_flag(CLI::App& app, EngineOptions& options) {
  options.cache_mb = 1024;
  app.add_option(
         "--cache-mb", options.cache_mb,
         "memory for images that were seen before, in MiB: another question about one starts behind it "
         "(0: none)")
      ->type_name("N")
      ->check(CLI::Range(size_t{0}, size_t{1} << 30))
      ->capture_default_str()
      ->group("Model");
  add_cache_dir_flags(app, options);
}

void add_cache_dir_flags(CLI::App& app, EngineOptions& options) {
  app.add_option(
         "--cache-dir", options.cache_dir,
         "folder that keeps images that were seen before on disk, so that they outlive the program, and "
         "beside them a copy of layers that were stored in few bits, as they are used: the next start maps "
         "it")
      ->type_name("DIR")
      ->group("Model");
  app.add_option("--cache-disk-gb", options.cache_disk_gb,
                 "size of all that is in --cache-dir, in GiB: what was used least recently leaves")
      ->type_name("N")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str()
      ->group("Model");
  options.cache_build = kBuiltFrom;
}

void add_reuse_flag(CLI::App& app, std::string& reuse) {
  app.add_option(
         "--reuse", reuse,
         "with a method that thins out before the language model (scout+glimpse): whether it gives way to "
         "what --cache-mb keeps of an image; auto: from the fifth question about it on")
      ->check(CLI::IsMember({"auto", "never", "always"}))
      ->capture_default_str()
      ->group("Pruning");
}

void add_image_flags(CLI::App& app, ImageBounds& bounds) {
  SettingFlags().add(app, bounds.fields(), "Images", "the checkpoint's");
}

void CommonFlags::add(CLI::App& app) {
  fetching = add_model_flags(app, engine);
  app.add_option(
         "--prune", prune,
         "none, or methods joined by '+', with settings: divprune(keep=0.5)+glimpse(threshold=0.5); "
         "known are " +
             method_names() +
             "; auto: glimpse if there are pruning modules; ask, which asks once, puts a scout before it if "
             "there is one, but not with --keep, --threshold and the like, nor with --cache-dir")
      ->type_name("METHODS")
      ->capture_default_str()
      ->group("Pruning");
  app.add_option_function<std::string>(
         "--keep",
         [this](const std::string& text) {
           const auto budget = parse_budget(text);
           if (!budget)
             throw CLI::ValidationError(concat(
                 "--keep: expected a fraction in (0, 1] or a number of tokens above 1, got '", text, "'"));
           keep = *budget;
         },
         "keep this fraction (up to 1) or number of the visual tokens, whatever the method's own rule")
      ->type_name("FRACTION|N")
      ->group("Pruning");
  rule.add(app, parsed_rule.fields(), "Pruning", "the modules'");
  app.add_option("-n,--max-new-tokens", max_new_tokens, "longest answer, in tokens")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str()
      ->group("Generation");
  sampling.add(app, parsed_sampling.fields(), "Generation", "the checkpoint's");
  app.add_option_function<std::string>(
         "--system",
         [this](const std::string& text) {
           system = text;
           has_system = true;
         },
         "system message (default: the model's own)")
      ->type_name("TEXT")
      ->group("Generation");
  add_image_flags(app, bounds);
  // Bounds on the pixels are flags already.
  frames.add(app, video.fields(), "Video", "", {"min_pixels", "max_pixels"});
}

void CommonFlags::provide(Interrupt& interrupt) {
  fetching.provide(engine, interrupt);
  video = video_options(video, bounds, *model_source(engine));
}

std::string CommonFlags::composition(const Engine& loaded) const {
  const bool bounded = rule.given() || keep.is_set();  // what a scout has taken away cannot be kept
  const std::string chosen = prune == "auto" ? loaded.default_prune(asks_once && !bounded) : prune;
  if (!rule.given()) return chosen;
  const std::string first = "--" + dashed(rule.values().begin()->first);
  check(
      chosen != "none" || prune != "auto", first,
      ": this model has no pruning modules, so that nothing is pruned; name their folder with --new-modules");
  return with_settings(chosen, rule.values(), first, "--prune");
}

void CommonFlags::check_used(bool has_media, bool has_videos) const {
  if (!has_videos)
    for (const auto& [name, text] : frames.values())
      fail("--", dashed(name), ": there is no video; name one with --video, or in the rows");
  if (has_media) return;
  check(!keep.is_set(), "--keep: there is no image whose tokens it could keep");
  for (const auto& [name, text] : rule.values())
    fail("--", dashed(name), ": there is no image whose tokens it could keep");
}

Request CommonFlags::request(const Engine& loaded) const {
  Request request;
  request.prune = composition(loaded);
  make_pruners(request.prune, loaded.pruner_context());  // a wrong composition fails here, before any work
  if (keep.is_set())
    check(takes_budget(request.prune), "--keep needs a pruning method that takes a budget; --prune ",
          request.prune, " takes none");
  request.budget = keep;
  request.reuse = parse_reuse(reuse);
  request.sampling = loaded.default_sampling();
  sampling.apply(request.sampling.fields());
  request.bounds = bounds;
  request.max_new_tokens = max_new_tokens;
  if (has_system) request.messages.push_back({"system", {{Part::Kind::text, system}}});
  return request;
}

double peak_memory_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  return 0;
}

std::string summary(const Answer& answer) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1);
  if (answer.visual_tokens > 0)
    out << "visual tokens kept: " << answer.kept_tokens << " of " << answer.visual_tokens << " ("
        << 100 * answer.kept_share() << " %)\n";
  out << "vision " << answer.times.vision << " ms, prefill " << answer.times.prefill << " ms for "
      << answer.prompt_tokens << " tokens (";
  if (answer.cached_tokens > 0) out << answer.cached_tokens << " of them cached, ";
  out << "predictor " << answer.times.prune << " ms), decode " << answer.ids.size() << " tokens";
  if (answer.decode_rate() > 0) out << " at " << answer.decode_rate() << " tokens/s";
  out << ", KV cache " << static_cast<double>(answer.kv_bytes) / 1048576 << " MiB, peak memory "
      << peak_memory_mib() << " MiB";
  return out.str();
}

std::string cut_note(const Answer& answer, int64_t max_new_tokens) {
  if (answer.finish_reason != "length") return "";
  const bool asked = std::ssize(answer.ids) >= max_new_tokens;
  return concat("glimpse: the answer was cut after ", answer.ids.size(), " tokens",
                asked ? " (--max-new-tokens)" : ": the model's context is full", "\n");
}

void Interrupt::watch_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  // Who started this program with Ctrl-C ignored, as scripts do in the background, wants it left alone.
  struct sigaction inherited {};
  if (sigaction(SIGINT, nullptr, &inherited) != 0 || inherited.sa_handler != SIG_IGN)
    sigaddset(&signals, SIGINT);
  // Every thread inherits the blocked signals; one thread waits for them and may do what a handler may not.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals] {
    for (int signal = 0; sigwait(&signals, &signal) == 0;) {
      const std::lock_guard lock(g_mutex);
      if (!g_armed || g_stop.stop_requested()) {
        if (signal == SIGINT) _exit(130);
        pthread_sigmask(SIG_UNBLOCK, &signals,
                        nullptr);  // it ends the program as if nobody had waited for it
        raise(signal);
      }
      g_stop.request_stop();
    }
  }).detach();
}

std::stop_token Interrupt::arm() {
  const std::lock_guard lock(g_mutex);
  g_stop = std::stop_source();
  g_armed = true;
  return g_stop.get_token();
}

void Interrupt::stop() {
  const std::lock_guard lock(g_mutex);
  if (g_armed) g_stop.request_stop();
}

void Interrupt::disarm() {
  const std::lock_guard lock(g_mutex);
  g_armed = false;
}

}  // namespace glimpse::app
