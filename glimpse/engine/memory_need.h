#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"
#include "glimpse/nn/kv_cache.h"

namespace glimpse {

/// What a model will need of the CPU's memory, told from its files' heads. In bytes.
class MemoryNeed {
 public:
  /// Of the model as it would be loaded, with KV caches of this format. Reads no weights.
  MemoryNeed(const ModelSource& source, const LoadOptions& options, KvFormat kv);

  /// Everything but the program itself and prompts: weights, tokenizer, what the allocator keeps.
  uint64_t loaded() const { return weights + around; }
  /// Of a prompt of text.
  uint64_t text(int64_t tokens) const { return tokens * (kv_token + rows_token); }
  /// Of a question about one image of so many visual tokens, while it is read: its cache when nothing is
  /// pruned before the last layer, and what encoder and language model make on their way. Measured are 70 to
  /// 105 % of loaded() and this together (tests/cli/test_memory.py).
  uint64_t image(int64_t tokens) const;
  /// The most visual tokens of one image that `bytes` beside what is loaded are enough for.
  int64_t largest_image(uint64_t bytes) const;
  /// Pixels that make one visual token.
  int64_t token_pixels() const { return vision.patch * vision.merge * vision.patch * vision.merge; }

  uint64_t weights = 0;     ///< of all tensors
  uint64_t mapped = 0;      ///< of these: the files' own pages, which other programs can share
  uint64_t kv_token = 0;    ///< keys and values of one token in all layers
  uint64_t rows_token = 0;  ///< hidden states of one token on its way through the layers
  VisionShape
      vision;  ///< for whoever asks about images to set: vision_shape() of a config that can be loaded

 private:
  static constexpr uint64_t around = uint64_t{24} << 20;
  uint64_t itemsize_ = 2;
  int64_t hidden_ = 0, inner_ = 0;  // of the language model
};

/// The same; nothing where a model's files do not tell it: whoever loads them says what is wrong.
std::optional<MemoryNeed> memory_need(const ModelSource& source, const LoadOptions& options, KvFormat kv);

/// Memory that this process can still get without that of others being written to disk: what the system has
/// available, or less where its cgroup (version 2 or 1) or one above it sets a limit. Nothing where the
/// system does not say. `root` is where /proc and /sys are.
std::optional<uint64_t> available_memory(const std::filesystem::path& root = "/");

/// Whether models are refused that cannot fit (of the process; by default unless GLIMPSE_MEMORY_CHECK is 0).
void check_memory(bool on);
/// Error with its numbers where a model that is to run on the CPU is larger than the available memory.
void check_fits(const ModelSource& source, const LoadOptions& options, KvFormat kv);

}  // namespace glimpse
