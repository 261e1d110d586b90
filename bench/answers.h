#pragma once

#include <filesystem>

#include "bench/limits.h"
#include "glimpse/engine/engine.h"
#include "glimpse/eval/flops.h"

namespace glimpse::bench {

/// One question about one image or video, as bench/peer_transformers.py asks it too.
struct Question {
  std::filesystem::path checkpoint;  ///< folder of model/ and new_modules/, as make_checkpoint.py writes it
  int64_t visual = 1024, text = 30, decode = 64;
  int64_t frames = 0;   ///< of a video; 0: an image
  double keep = 0.074;  ///< share of the visual tokens that a pruned answer keeps
  int threads = 2, rounds = 2;
  std::string weights = "auto";  ///< as EngineOptions has them

  /// The bits that the linear layers' weights have: "bf16", "int8" or "int4".
  std::string bits() const;
  /// What a model with such weights should reach.
  struct Goals {
    std::optional<Goal> prefill, decode;  ///< shares of the limits
    std::optional<Goal> batch;            ///< speed of eight sequences over one
    std::optional<Goal> resident;         ///< GiB, of a model of 7B
  };
  Goals goals() const;
};

VisionShape vision_shape(const Question& question);
/// The patch grid of the image or video: as near to a square as its visual tokens allow.
Grid patch_grid(const Question& question, const VisionShape& vision);

/// The question's prompt: random ids and noise, the same in every run.
Prompt make_prompt(const Question& question, const Vlm& model);

/// The checkpoint with its modules and the weights asked for.
std::unique_ptr<Engine> load_engine(const Question& question);

/// Loads the model and answers the question with and without pruning, in turns. Rows: loading, vision
/// encoding, prefill, decoding, caches and memory. The others take an engine that load_engine() made.
void time_answers(const Question& question, const Limits& limits, Rows& rows);

/// The language model alone on as many tokens, all of them text. Rows: prefill and decoding.
void time_decoder(const Question& question, const Engine& engine, const Limits& limits, Rows& rows);

/// A prompt of as many tokens, all of them text.
Prompt make_text_prompt(const Question& question, const Vlm& model);

}  // namespace glimpse::bench
