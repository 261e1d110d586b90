#pragma once

#include <ATen/ATen.h>

#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "glimpse/engine/sequence.h"

namespace glimpse {

/// What a prompt's beginning, up to and including its last visual token, leaves in the language model before
/// the first cut that may depend on what follows. Never changed once made.
struct ImagePrefix {
  int64_t tokens = 0;                         ///< prompt rows it stands for
  VisionOutput vision;                        ///< what later cuts read of the encoder
  std::vector<LayerCache> layers;             ///< of the layers run, each as long as `rows`
  at::Tensor hidden;                          ///< [rows, D]: their output, or undefined if it is the last
  std::vector<int64_t> rows, visual, source;  ///< as LivingRows has them
  at::Tensor position_ids;                    ///< [components, rows]
  std::vector<int64_t> shift;                 ///< as Sequence has it
  at::Tensor scores;                          ///< as Sequence has them

  /// Bytes of all tensors.
  size_t bytes() const;
};

/// Where image prefixes end: in the forward pass (before layer `layers`: no cut is in the way) and in the
/// prompt. Nothing for a prompt without images, or with nothing after them.
struct PrefixEnd {
  Moment when;
  int64_t tokens = 0;
};
std::optional<PrefixEnd> prefix_end(const Prompt& prompt, const PrunerChain& pruners, int64_t layers);

/// The hash of everything that an image prefix depends on: the model's weights (Vlm::weights_version), its
/// tokens and positions, the images' pixels, what the pruners record of the encoder, and what cuts before the
/// first layer are made from.
PrefixKey prefix_key(const Sequence& sequence, const PrefixEnd& end, uint64_t weights_version);

/// Image prefixes by their keys; the least recently used leave when they together exceed a number of bytes.
/// May be used from several threads.
class PrefixCache {
 public:
  explicit PrefixCache(size_t max_bytes) : max_bytes_(max_bytes) {}

  /// The entry, which is then the most recently used, or null.
  std::shared_ptr<const ImagePrefix> find(const PrefixKey& key);
  /// Keeps an entry, in place of an earlier one with its key. One that alone exceeds the bound is not kept.
  void insert(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix);

  size_t max_bytes() const { return max_bytes_; }
  size_t bytes() const;
  size_t size() const;

 private:
  struct Entry {
    PrefixKey key;
    std::shared_ptr<const ImagePrefix> prefix;
    size_t bytes = 0;
  };
  using Entries = std::list<Entry>;  // the most recently used first
  void erase(Entries::iterator entry);

  const size_t max_bytes_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::map<PrefixKey, Entries::iterator> by_key_;
  size_t bytes_ = 0;
};

}  // namespace glimpse
