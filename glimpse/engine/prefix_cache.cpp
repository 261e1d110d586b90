#include "glimpse/engine/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <random>

namespace glimpse {

namespace {

// XXH3's state of 128 bits. The seed is the process's own, so that nobody can make two images collide.
class Hash {
 public:
  Hash() : state_(XXH3_createState()) {
    static const uint64_t seed = [] {
      std::random_device device;
      return uint64_t{device()} << 32 | device();
    }();
    check(state_ != nullptr, "prefix cache: out of memory");
    XXH3_128bits_reset_withSeed(state_, seed);
  }
  ~Hash() { XXH3_freeState(state_); }
  Hash(const Hash&) = delete;

  // Every part goes with its size, so that parts cannot run into each other.
  void bytes(const void* data, size_t size) {
    XXH3_128bits_update(state_, &size, sizeof size);
    XXH3_128bits_update(state_, data, size);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void add(T value) { bytes(&value, sizeof value); }
  void add(const std::string& text) { bytes(text.data(), text.size()); }
  template <class T>
  void add(const std::optional<T>& value) {
    add(value.has_value());
    if (value) add(*value);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void add(const std::vector<T>& values) { bytes(values.data(), values.size() * sizeof(T)); }
  void add(const at::Tensor& tensor) {
    const at::Tensor flat = tensor.cpu().contiguous();
    add(static_cast<int>(flat.scalar_type()));
    add(flat.sizes().vec());
    bytes(flat.const_data_ptr(), flat.nbytes());
  }
  PrefixKey key() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return {hash.high64, hash.low64};
  }

 private:
  XXH3_state_t* state_;
};

size_t stored(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.storage().nbytes() : 0;
}

bool early(const Cut& cut) {
  return cut.when() <= Moment::before(0);
}

}  // namespace

size_t ImagePrefix::bytes() const {
  size_t sum = stored(vision.shared) + stored(hidden) + stored(position_ids) + stored(scores);
  for (const at::Tensor& state : vision.states) sum += stored(state);
  for (const at::Tensor& added : vision.additions) sum += stored(added);
  for (const VisionAttention& attention : vision.attention)
    sum += stored(attention.received) + stored(attention.keys);
  for (const LayerCache& layer : layers) sum += layer.bytes();
  return sum + (vision.windows.size() + rows.size() + visual.size() + source.size() + shift.size()) *
                   sizeof(int64_t);
}

std::optional<PrefixEnd> prefix_end(const Prompt& prompt, const PrunerChain& pruners, int64_t layers) {
  if (prompt.visual_rows.empty()) return std::nullopt;
  PrefixEnd end{Moment::before(layers), prompt.visual_rows.back() + 1};
  if (end.tokens == static_cast<int64_t>(prompt.ids.size())) return std::nullopt;
  // Cuts inside the model end the prefix whatever they read: text rows still see all visual tokens before.
  // Those at the encoder's output see no text.
  for (const auto& pruner : pruners)
    for (const Cut& cut : pruner->cuts())
      if (!early(cut) || (cut.reads_text && cut.place != Cut::Place::encoder))
        end.when = std::min(end.when, cut.when());
  return end;
}

PrefixKey prefix_key(const Sequence& sequence, const PrefixEnd& end, uint64_t weights_version) {
  const Prompt& prompt = sequence.prompt;
  Hash hash;
  hash.add(weights_version);
  hash.add(std::vector<int64_t>{end.when.layers_run, static_cast<int64_t>(end.when.side)});
  hash.add(std::vector(prompt.ids.begin(), prompt.ids.begin() + end.tokens));
  hash.add(prompt.position_ids.narrow(1, 0, end.tokens));
  for (const Patches& image : prompt.patches) {
    hash.add(std::vector<int64_t>{image.grid.t, image.grid.h, image.grid.w});
    hash.add(image.pixel_values);
  }
  bool cut_already = false;
  for (const auto& pruner : sequence.pruners) {
    const Taps taps = pruner->taps();
    hash.add(taps.vision_layers);
    hash.add(taps.shared_space);
    hash.add(taps.vision_attention.size());
    for (const VisionAttentionTap& tap : taps.vision_attention) {
      hash.add(tap.block);
      hash.add(tap.rotate_twice);
    }
    const std::vector<Cut> cuts = pruner->cuts();
    cut_already |=
        std::any_of(cuts.begin(), cuts.end(), [&](const Cut& cut) { return cut.when() < end.when; });
  }
  if (!cut_already) return hash.key();
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
    for (const Box& box : boxes) hash.add(std::vector<double>{box.x1, box.y1, box.x2, box.y2});
  }
  return hash.key();
}

std::shared_ptr<const ImagePrefix> PrefixCache::find(const PrefixKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->prefix;
}

void PrefixCache::insert(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix) {
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

}  // namespace glimpse
