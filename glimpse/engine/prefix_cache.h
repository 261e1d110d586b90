#pragma once

#include <ATen/ATen.h>

#include <compare>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "glimpse/engine/image_prefix.h"
#include "glimpse/engine/prefix_store.h"

namespace glimpse {

/// Where image prefixes end: in the forward pass (before layer `layers`: no cut is in the way) and in the
/// prompt. Nothing for a prompt without images, or with nothing after them.
struct PrefixEnd {
  Moment when;
  int64_t tokens = 0;
};
std::optional<PrefixEnd> prefix_end(const Prompt& prompt, const PrunerChain& pruners, int64_t layers);

/// The hash of everything that an image prefix depends on: the model's weights (Vlm::weights_version), its
/// tokens and positions, the images' pixels, what the pruners record of the encoder, and what cuts before the
/// first layer are made from. `seed`: PrefixCache::seed().
PrefixKey prefix_key(const Sequence& sequence, const PrefixEnd& end, uint64_t weights_version,
                     uint64_t seed = 0);

/// The hash of what an encoder's state depends on that has run `blocks` (-1: all): the images' pixels and
/// what is recorded.
PrefixKey encoder_key(const Prompt& prompt, const VisionTaps& taps, int64_t blocks, uint64_t weights_version,
                      uint64_t seed);

/// Image prefixes by their keys; the least recently used leave when they together exceed a number of bytes.
/// With a store they are kept on disk, too, where they outlive the process. May be used from several threads.
class PrefixCache {
 public:
  explicit PrefixCache(size_t max_bytes, std::unique_ptr<PrefixStore> store = nullptr);

  /// Of the hashes that keys are: nobody else knows it, so that nobody can make two images collide.
  uint64_t seed() const { return seed_; }
  /// Brings the entry into memory if it is on disk only; waits for the disk.
  void fetch(const PrefixKey& key);
  /// The entry if it is in memory, which is then the most recently used, or null.
  std::shared_ptr<const ImagePrefix> find(const PrefixKey& key);
  /// Keeps an entry, in place of an earlier one with its key. One that alone exceeds the bound is not kept.
  void insert(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix);

  /// Notes that a prefix was of use here, and says how often it was before. The latest 4096 are known.
  int64_t times_wanted(const PrefixKey& key);

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
  void hold(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix);

  const size_t max_bytes_;
  const std::unique_ptr<PrefixStore> store_;
  const uint64_t seed_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::map<PrefixKey, Entries::iterator> by_key_;
  size_t bytes_ = 0;
  std::map<PrefixKey, int64_t> wanted_;
  std::deque<PrefixKey> wanted_order_;  // the oldest first
};

/// A cache of `cache_mb` MiB and, where there is a folder, also there; null for 0 MiB, which is an Error with
/// a folder. `origin`: PrefixStoreOptions::origin, asked for only if there is a folder.
std::unique_ptr<PrefixCache> make_prefix_cache(size_t cache_mb, std::shared_ptr<CacheFolder> folder,
                                               at::Device device, const std::function<std::string()>& origin);

}  // namespace glimpse
