#pragma once

#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "glimpse/engine/decode_graphs.h"
#include "glimpse/engine/events.h"
#include "glimpse/engine/prefix_cache.h"
#include "glimpse/engine/sampling.h"

namespace glimpse {

/// What to load and where to run it.
struct EngineOptions {
  std::string model;   ///< directory, hub id in the local Hugging Face cache, or .gguf file
  std::string mmproj;  ///< the vision encoder's .gguf file beside a .gguf model
  /// Directories of pruning modules; NAME=DIR names a set for glimpse(modules=NAME). One without a name is
  /// what methods take that name none.
  std::vector<std::string> new_modules;
  std::string clip;                   ///< a whole CLIP for its text tower, beside a model that has none
  std::vector<std::string> adapters;  ///< PEFT directories, merged at load
  std::string dtype = "auto";         ///< auto (fp32 for a checkpoint saved in it, else bf16), bf16 or fp32
  std::string weights = "auto";  ///< of the linear layers: auto (as stored), bf16 (not quantised), int8, int4
  std::string kv = "bf16";       ///< of the KV cache: bf16 (in the arithmetic's own type), int8 or int4
  std::string device = "cpu";    ///< cpu, cuda or cuda:i
  std::string kernels = "auto";  ///< best instruction set for the CPU kernels (nn/target.h), of the process:
                                 ///< the first engine chooses, auto accepts its choice, another is an Error
  int threads = -1;              ///< of the process: each load sets them. 0: as many as this process may use,
                                 ///< -1: leave them as they are
  // The rest only pays where there are many questions.
  size_t cache_mb = 0;        ///< MiB of image prefixes kept for further questions (see PrefixCache); 0: none
  std::string cache_dir;      ///< folder that keeps them on disk, too (see PrefixStore); "": none
  double cache_disk_gb = 10;  ///< GiB of all that is there (see CacheFolder)
  std::string cache_build;    ///< of the program that asks: prefixes of another one are not used

  Fields fields();  ///< all but those of the cache
};

/// When a composition's shortcuts (Pruner::is_shortcut) give way to an image prefix, for which all rows of
/// the image go through the layers before the next cut once: `automatic` from the fifth question about the
/// same images on, when it has been worth it, `always` or `never`. Without a cache they never do.
enum class Reuse { automatic, never, always };
/// Of "auto", "never" and "always"; Error for anything else.
Reuse parse_reuse(const std::string& name);

/// One question.
struct Request {
  std::vector<Message> messages;
  std::vector<Medium> media;  ///< one per part that is no text, in order
  ImageBounds bounds;
  /// A prompt made elsewhere, in place of messages and media: its tokens, in which each medium has one place
  /// or one per visual token, and what the encoder takes of these media.
  std::vector<int64_t> ids;
  std::vector<Patches> patches;
  std::string prune = "auto";          ///< composition; auto: Engine::default_prune()
  std::optional<PrunerChain> pruners;  ///< in place of `prune`
  Budget budget;
  Reuse reuse = Reuse::automatic;
  std::vector<std::vector<Box>> boxes;  ///< reference boxes per medium, normalised
  SamplingOptions sampling;
  int64_t max_new_tokens = 512;
  bool ignore_eos = false;
  std::optional<std::vector<int64_t>> stop_ids;  ///< tokens that end the answer, in place of the checkpoint's
  std::vector<std::string> stop_strings;         ///< the answer ends before the first of these
  std::optional<int64_t> logprobs;  ///< report each token's log-probability and as many of the likeliest
  bool logits = false;              ///< report them: Answer::logits
  std::stop_token stop;             ///< checked between layers and between tokens
  /// Called with whole characters as they come, by the thread that steps, which waits for it.
  std::function<void(const std::string&)> on_text;
  std::shared_ptr<EventSink> events = {};  ///< is told what happens
};

/// What came of it.
struct Answer {
  std::string text;
  std::vector<int64_t> ids;       ///< the end token not included
  std::vector<TokenInfo> tokens;  ///< the same with log-probabilities, if these were asked for
  std::optional<int64_t> end_id;  ///< the end token, if one ended it
  /// [V] float32 on the CPU for each token, the end token included, if they were asked for.
  std::vector<at::Tensor> logits;
  std::string finish_reason;      ///< "stop", "length" or "cancelled"
  std::vector<Segment> segments;  ///< token grids
  /// Per segment, row-major indices of the visual tokens kept. A class token (VisionZip) has no place and is
  /// counted in `kept_tokens` only.
  std::vector<std::vector<int64_t>> keep;
  std::vector<float> scores;     ///< [N] probability per visual token, or empty
  nlohmann::json pruning;        ///< methods that ran, and their settings
  std::optional<bool> shortcut;  ///< whether shortcuts were among them, if they could have given way (Reuse)
  int64_t prompt_tokens = 0, visual_tokens = 0, kept_tokens = 0;
  std::vector<int64_t> left;           ///< visual tokens that each cut left, in the order of the cuts
  std::vector<int64_t> question_rows;  ///< that a text tower ran for each piece of the question, if asked to
  int64_t cached_tokens = 0;           ///< of the prompt: what an image prefix saved
  size_t kv_bytes = 0;                 ///< of the cache after prefill
  StageTimes times;

  /// Part of the visual tokens that is left, from 0 to 1; 0 where there are none.
  double kept_share() const;
  /// Tokens per second of the decoding, the first token (which prefill gives) not counted.
  double decode_rate() const;
};

/// A loaded model with its pruning modules: prefill, cut, decode.
class Engine {
 public:
  /// Errors name what was wrong with which file.
  static std::unique_ptr<Engine> load(const EngineOptions& options);
  Engine(std::unique_ptr<Vlm> model, ModuleSets modules, std::unique_ptr<PrefixCache> cache = nullptr);

  /// Answers one request. May be called from several threads.
  Answer ask(const Request& request) const;
  /// Answers several together (see Scheduler), each as ask() does within what Scheduler says of rounding. A
  /// request that was stopped or is wrong does not disturb the others; the first error is thrown once the
  /// others are answered.
  std::vector<Answer> ask(std::span<const Request> requests) const;

  const Vlm& model() const { return *model_; }
  const GlimpseModules* modules() const { return modules_.find("").get(); }
  PrunerContext pruner_context() const {
    return {model_->decoder().config().layers, modules_, model_->shallow_block(), model_->has_class_token(),
            model_->text_tower().has_value()};
  }
  /// How it holds keys and values.
  KvFormat kv() const { return kv_; }
  /// Image prefixes, or null if none are kept.
  PrefixCache* prefix_cache() const { return prefix_cache_.get(); }
  /// Recorded decoding steps, on a CUDA device.
  DecodeGraphs& decode_graphs() const { return *decode_graphs_; }
  /// Tokens that end an answer.
  const std::vector<int64_t>& stop_ids() const { return stop_ids_; }
  /// Sampling defaults from the checkpoint's generation_config.json.
  const SamplingOptions& default_sampling() const { return default_sampling_; }
  /// The composition that "auto" stands for: glimpse, if there are its modules. `once`: for a question that
  /// is the only one about a picture; then a scout goes first, if there is one too.
  std::string default_prune(bool once = false) const;

 private:
  std::unique_ptr<Vlm> model_;
  ModuleSets modules_;
  KvFormat kv_ = KvFormat::plain;
  std::unique_ptr<PrefixCache> prefix_cache_;
  std::unique_ptr<DecodeGraphs> decode_graphs_;
  SamplingOptions default_sampling_;
  std::vector<int64_t> stop_ids_;
};

/// The shape of a model, as its pruning modules need it.
BaseShape base_shape(const Vlm& model);

/// Uses this many CPU threads in the whole process. 0: default_threads() (engine/threads.h), or what
/// OMP_NUM_THREADS says.
void set_threads(int count);

/// The device named by "cpu", "cuda" or "cuda:i"; an error if it cannot be used.
at::Device parse_device(const std::string& name);

/// What "auto", "bf16", "int8" and "int4" mean; an error for anything else.
WeightOptions::Format parse_weight_format(const std::string& name);

/// Where the model that the options name is loaded from; the built-in one if they name none.
std::unique_ptr<ModelSource> model_source(const EngineOptions& options);

/// Names and directories of the pruning modules that the options name; those of the built-in model if they
/// name neither modules nor model. The set without a name comes first. Errors: two with one name.
std::vector<std::pair<std::string, std::filesystem::path>> module_dirs(const EngineOptions& options);

/// Fingerprints of the files that the options name, for what was made with them: "model", "new_modules" by
/// their names, ...
nlohmann::json content_of(const EngineOptions& options);

/// How to load a checkpoint with this config as the options say: dtype, device, adapters.
LoadOptions load_options(const EngineOptions& options, const nlohmann::json& config);

/// Directory of the model that comes with the program: next to the build tree's sources or in the install's
/// share folder. Error if neither exists.
std::filesystem::path builtin_model_dir();

}  // namespace glimpse
