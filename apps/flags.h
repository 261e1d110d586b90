#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fetching.h"
#include "glimpse/engine/engine.h"

namespace glimpse::app {

/// Flags made from a component's list of settings. What the user gave is kept as text and applied later, on
/// top of defaults that may only be known after a model is loaded.
class SettingFlags {
 public:
  /// Adds --name for every field but those called as in `without`, with its meaning, range and default. What
  /// `fields` refer to must outlive the parsing, which sets it. A TIME may be hours:minutes:seconds.
  /// `else_where`: see Field::about.
  void add(CLI::App& app, Fields fields, const std::string& group, const std::string& else_where = "",
           const std::set<std::string>& without = {});
  bool given() const { return !values_->empty(); }
  const std::map<std::string, std::string>& values() const { return *values_; }
  /// Sets the fields that were given.
  void apply(Fields fields) const;

 private:
  std::shared_ptr<std::map<std::string, std::string>> values_ =
      std::make_shared<std::map<std::string, std::string>>();
};

/// The flags that ask, chat and infer share.
struct CommonFlags {
  EngineOptions engine;
  Fetching fetching;
  SettingFlags sampling, rule, frames;
  SamplingOptions parsed_sampling;  ///< only to check values while parsing
  KeepRule parsed_rule;
  std::string prune = "auto", system;
  bool asks_once = false;  ///< nothing else will be asked about the images
  bool has_system = false;
  Budget keep;
  std::string reuse = "auto";
  int64_t max_new_tokens = 512;
  ImageBounds bounds;
  VideoOptions video;  ///< as its own flags set it

  void add(CLI::App& app);
  /// Sees that the model is there, and adds to `video` how it wants videos shown.
  void provide(Interrupt& interrupt);
  /// The composition that --prune and the rule's flags together mean.
  std::string composition(const Engine& loaded) const;
  /// Error for a setting about visual tokens, or about videos, that would do nothing: there are none.
  void check_used(bool has_media, bool has_videos) const;
  /// A request with every setting but messages and images.
  Request request(const Engine& loaded) const;
};

/// Adds the flags that name a model, how to run it, and how to come by it.
Fetching add_model_flags(CLI::App& app, EngineOptions& options);

/// Adds the flags that say how images are prepared.
void add_image_flags(CLI::App& app, ImageBounds& bounds);

/// Which model these mean, as recorded beside the answers: what it is called, and what it holds.
nlohmann::json model_settings(const EngineOptions& options);
/// Those of its members that only say where the model lies.
extern const std::set<std::string> kModelPlaces;

/// Adds --cache-dir and its size.
void add_cache_dir_flags(CLI::App& app, EngineOptions& options);
/// The same with --cache-mb, for commands that ask more than one question.
void add_cache_flag(CLI::App& app, EngineOptions& options);
/// Adds --reuse, for the same.
void add_reuse_flag(CLI::App& app, std::string& reuse);

/// The same in one or two lines for people.
std::string summary(const Answer& answer);

/// A line that says that the answer was cut and by what; "" when it came to its end.
std::string cut_note(const Answer& answer, int64_t max_new_tokens);

/// Peak resident memory of this process so far, MiB.
double peak_memory_mib();

/// Stops what runs in this process.
class Interrupt {
 public:
  /// From here on Ctrl-C and SIGTERM do; a second one, or one while nothing runs, ends the program (Ctrl-C
  /// with status 130). Call once, before any other thread exists.
  void watch_signals();
  /// A token that the next stop() stops, until the next call.
  std::stop_token arm();
  void disarm();
  void stop();
};

/// Commands: each adds its flags and returns what to run once they are parsed.
std::function<int()> add_ask(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_chat(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_infer(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_serve(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_train(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_tune(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_eval(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_inspect(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_methods(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_pull(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_models(CLI::App& app);
std::function<int()> add_merge(CLI::App& app, Interrupt& interrupt);
std::function<int()> add_quantize(CLI::App& app, Interrupt& interrupt);

}  // namespace glimpse::app
