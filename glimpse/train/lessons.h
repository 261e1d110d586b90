#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "glimpse/engine/prefix_cache.h"
#include "glimpse/prune/glimpse.h"
#include "glimpse/prune/scout.h"
#include "glimpse/train/forward.h"

namespace glimpse {

/// What a scout learns from one row. What the frozen model makes of it never changes in a training.
struct Lesson {
  std::vector<ScoutInput> inputs;  ///< of each picture
  std::vector<int64_t> windows;    ///< [N]: encoder_units(); empty without tokens
  at::Tensor taught;               ///< [N] float32 probabilities of the teacher's; undefined without one
};

/// Who gives lessons, and where they stay, so that the frozen model runs once per row in all trainings.
struct LessonOptions {
  std::shared_ptr<const GlimpseModules> teacher;  ///< null: there are only boxes to learn from
  size_t cache_mb = 0;  ///< MiB of memory for pictures that other rows are about, too; 0: none
  std::shared_ptr<CacheFolder> folder;  ///< for files of lessons; null: none
  std::string origin;          ///< what lessons depend on beside the row: the model and its arithmetic ...
  std::string teacher_origin;  ///< ... and the teacher, on which what is kept of pictures does not depend
};

/// Makes lessons with a frozen model, or reads them where they were made before: of each picture a
/// safetensors file of what the scout sees, of each row one of its words and its teacher's opinion. A file
/// that cannot be read is made again. Room in the folder is made of what this training has not used: rows
/// come in turn, so those that left for others would be missing when their turn comes. The model must outlive
/// it. Error: the folder cannot be written to.
class Lessons {
 public:
  /// `taps`: blocks of the encoder that the scout reads.
  Lessons(const Vlm& model, std::vector<int64_t> taps, LessonOptions options);

  std::vector<Lesson> of(std::span<const Example> examples);

 private:
  struct Files {
    std::filesystem::path picture, row;
  };
  Files files_of(const Prompt& prompt) const;
  std::optional<Lesson> stored(const Files& files) const;
  void store(const Files& files, const Lesson& lesson);
  std::vector<Lesson> made(std::span<const Example* const> examples);

  const Vlm& model_;
  const std::vector<int64_t> taps_;
  const LessonOptions options_;
  std::unique_ptr<PrefixCache> pictures_;
  const CacheFolder::Time began_ = CacheFolder::Time::clock::now();
  bool full_ = false;  // of this training's: no room is left to make
};

}  // namespace glimpse
