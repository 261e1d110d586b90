#include "glimpse/nn/kv_cache.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/nn/cuda_ops.h"

namespace glimpse {

namespace {
constexpr int64_t kHeadroom = 64;  // rows allocated ahead, so that decoding rarely grows the cache
}

int64_t LayerCache::capacity_of(int64_t length) {
  return length + std::max(kHeadroom, length / 4);
}

void LayerCache::reserve(int64_t length, int64_t kv_heads, int64_t d, at::TensorOptions options) {
  const bool shared = keys_.defined() && keys_.use_count() > 1;  // with a copy of this cache
  if (keys_.defined() && !shared && length <= keys_.size(1)) return;
  // What grows once will grow again, but a copy's first rows of its own are like the first of a new cache.
  const int64_t capacity = length_ > 0 && !shared ? capacity_of(length) : length + kHeadroom;
  at::Tensor keys = at::empty({kv_heads, capacity, d}, options);
  at::Tensor values = at::empty_like(keys);
  if (length_ > 0) {
    keys.narrow(1, 0, length_).copy_(this->keys());
    values.narrow(1, 0, length_).copy_(this->values());
  }
  keys_ = keys;
  values_ = values;
}

void LayerCache::append(const at::Tensor& k, const at::Tensor& v, int64_t more) {
  const int64_t count = k.size(0);
  if (at::GradMode::is_enabled() && (k.requires_grad() || v.requires_grad())) {
    const at::Tensor new_keys = k.transpose(0, 1), new_values = v.transpose(0, 1);
    keys_ = length_ ? at::cat({keys(), new_keys}, 1) : new_keys;
    values_ = length_ ? at::cat({values(), new_values}, 1) : new_values;
    length_ += count;
    return;
  }
  reserve(length_ + count + more, k.size(1), k.size(2), k.options());
  keys_.narrow(1, length_, count).copy_(k.transpose(0, 1));
  values_.narrow(1, length_, count).copy_(v.transpose(0, 1));
  length_ += count;
}

void LayerCache::grow(int64_t count) {
  reserve(length_ + count, keys_.size(0), keys_.size(2), keys_.options());
  length_ += count;
}

void LayerCache::keep(const at::Tensor& index) {
  const int64_t count = index.size(0);
  if (at::GradMode::is_enabled() && (keys_.requires_grad() || values_.requires_grad())) {
    keys_ = keys().index_select(1, index);
    values_ = values().index_select(1, index);
    length_ = count;
    return;
  }
  const at::Tensor old_keys = keys(), old_values = values();
  at::Tensor keys = at::empty({old_keys.size(0), count + kHeadroom, old_keys.size(2)}, old_keys.options());
  at::Tensor values = at::empty_like(keys);
  if (cuda::has_kernel(keys_)) {
    cuda::gather_rows(keys_, values_, index, keys, values);
  } else {
    keys.narrow(1, 0, count).copy_(old_keys.index_select(1, index));
    values.narrow(1, 0, count).copy_(old_values.index_select(1, index));
  }
  keys_ = keys;
  values_ = values;
  length_ = count;
}

LayerCache LayerCache::first(int64_t count) const {
  LayerCache out;
  out.keys_ = keys().narrow(1, 0, count).clone(at::MemoryFormat::Contiguous);
  out.values_ = values().narrow(1, 0, count).clone(at::MemoryFormat::Contiguous);
  out.length_ = count;
  return out;
}

}  // namespace glimpse
