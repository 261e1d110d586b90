#include "glimpse/engine/prefix_cache.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/engine/hash.h"

namespace glimpse {

namespace {

PrefixKey key_of(const Hash& hash) {
  const XXH128_hash_t sum = hash.sum();
  return {sum.high64, sum.low64};
}

void add_pictures(Hash& hash, const Prompt& prompt) {
  for (const Patches& image : prompt.patches) {
    hash.add(std::vector<int64_t>{image.grid.t, image.grid.h, image.grid.w, image.width, image.height});
    hash.add(image.pixel_values);
  }
}

void add_taps(Hash& hash, const std::vector<VisionAttentionTap>& taps) {
  hash.add(taps.size());
  for (const VisionAttentionTap& tap : taps) {
    hash.add(tap.block);
    hash.add(tap.rotate_twice);
  }
}

bool early(const Cut& cut) {
  return cut.when() <= Moment::before(0);
}

}  // namespace

std::optional<PrefixEnd> prefix_end(const Prompt& prompt, const PrunerChain& pruners, int64_t layers) {
  if (prompt.visual_rows.empty()) return std::nullopt;
  PrefixEnd end{Moment::before(layers), prompt.media_rows().back() + 1};
  if (end.tokens == static_cast<int64_t>(prompt.ids.size())) return std::nullopt;
  // Cuts inside the model end the prefix whatever they read: text rows still see all visual tokens before.
  // Those at the encoder's output see no text. One within the encoder that does leaves nothing to keep.
  for (const auto& pruner : pruners)
    for (const Cut& cut : pruner->cuts())
      if (cut.place == Cut::Place::within && cut.reads_text)
        return std::nullopt;
      else if (!early(cut) || (cut.reads_text && cut.place != Cut::Place::encoder))
        end.when = std::min(end.when, cut.when());
  return end;
}

PrefixKey prefix_key(const Sequence& sequence, const PrefixEnd& end, uint64_t weights_version,
                     uint64_t seed) {
  const Prompt& prompt = sequence.prompt;
  Hash hash(seed);
  hash.add(weights_version);
  hash.add(std::vector<int64_t>{end.when.layers_run, static_cast<int64_t>(end.when.side)});
  hash.add(std::vector(prompt.ids.begin(), prompt.ids.begin() + end.tokens));
  hash.add(prompt.position_ids.narrow(1, 0, end.tokens));
  add_pictures(hash, prompt);
  bool cut_already = false;
  for (const auto& pruner : sequence.pruners) {
    const Taps taps = pruner->taps();
    hash.add(taps.vision_layers);
    hash.add(taps.shared_space);
    add_taps(hash, taps.vision_attention);
    const std::vector<Cut> cuts = pruner->cuts();
    cut_already |=
        std::any_of(cuts.begin(), cuts.end(), [&](const Cut& cut) { return cut.when() < end.when; });
  }
  if (!cut_already) return key_of(hash);
  for (const auto& pruner : sequence.pruners) {
    hash.add(pruner->name());
    hash.add(pruner->settings().dump());
  }
  hash.add(sequence.budget.keep);
  hash.add(sequence.budget.count);
  hash.add(sequence.budget.counts);
  for (const Segment& segment : prompt.segments)
    hash.add(std::vector<double>{segment.area.x1, segment.area.y1, segment.area.x2, segment.area.y2});
  for (const std::vector<Box>& boxes : sequence.boxes) {
    hash.add(boxes.size());
    for (const Box& box : boxes)
      hash.add(std::vector<double>{box.x1, box.y1, box.x2, box.y2, box.from, box.to});
  }
  return key_of(hash);
}

PrefixKey encoder_key(const Prompt& prompt, const VisionTaps& taps, int64_t blocks, uint64_t weights_version,
                      uint64_t seed) {
  Hash hash(seed);
  hash.add(std::string("encoder"));
  hash.add(weights_version);
  hash.add(blocks);
  add_pictures(hash, prompt);
  // Separators between segments come with the pictures.
  for (const Segment& segment : prompt.segments) hash.add(std::vector<int64_t>{segment.rows, segment.cols});
  hash.add(taps.states);
  add_taps(hash, taps.attention);
  hash.add(taps.shared);
  hash.add(taps.class_tokens);
  return key_of(hash);
}

PrefixCache::PrefixCache(size_t max_bytes, std::unique_ptr<PrefixStore> store)
    : max_bytes_(max_bytes), store_(std::move(store)), seed_(store_ ? store_->seed() : random_word()) {}

void PrefixCache::fetch(const PrefixKey& key) {
  if (!store_ || find(key)) return;
  if (auto prefix = store_->load(key)) hold(key, std::move(prefix));
}

std::shared_ptr<const ImagePrefix> PrefixCache::find(const PrefixKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->prefix;
}

int64_t PrefixCache::times_wanted(const PrefixKey& key) {
  constexpr size_t most = 4096;
  const std::lock_guard lock(mutex_);
  if (const auto found = wanted_.find(key); found != wanted_.end()) return found->second++;
  wanted_[key] = 1;
  wanted_order_.push_back(key);
  if (wanted_order_.size() > most) {
    wanted_.erase(wanted_order_.front());
    wanted_order_.pop_front();
  }
  return 0;
}

void PrefixCache::insert(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix) {
  if (store_ && !prefix->encoding) store_->save(key, prefix);
  hold(key, std::move(prefix));
}

void PrefixCache::hold(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix) {
  const size_t size = prefix->bytes();
  const std::lock_guard lock(mutex_);
  if (const auto found = by_key_.find(key); found != by_key_.end()) erase(found->second);
  if (size > max_bytes_) return;
  while (bytes_ + size > max_bytes_) erase(std::prev(entries_.end()));
  entries_.push_front({key, std::move(prefix), size});
  by_key_[key] = entries_.begin();
  bytes_ += size;
}

void PrefixCache::erase(Entries::iterator entry) {
  bytes_ -= entry->bytes;
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

size_t PrefixCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

size_t PrefixCache::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

std::unique_ptr<PrefixCache> make_prefix_cache(size_t cache_mb, std::shared_ptr<CacheFolder> folder,
                                               at::Device device,
                                               const std::function<std::string()>& origin) {
  check(!folder || cache_mb > 0,
        "cache_dir: keeps on disk what is in memory first, so cache_mb must be above 0");
  if (cache_mb == 0) return nullptr;
  std::unique_ptr<PrefixStore> store;
  if (folder) store = std::make_unique<PrefixStore>(PrefixStoreOptions{std::move(folder), origin()}, device);
  return std::make_unique<PrefixCache>(cache_mb << 20, std::move(store));
}

}  // namespace glimpse
