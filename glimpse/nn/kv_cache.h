#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace glimpse {

/// Keys (after RoPE) and values of one sequence at one layer.
class LayerCache {
 public:
  int64_t length() const { return length_; }
  at::Tensor keys() const { return keys_.narrow(1, 0, length_); }      ///< [Hkv, length, d]
  at::Tensor values() const { return values_.narrow(1, 0, length_); }  ///< [Hkv, length, d]

  /// Adds rows k, v [T, Hkv, d] at the end. Rows that require gradients make a new tensor, so that copies of
  /// this cache made before keep theirs.
  void append(const at::Tensor& k, const at::Tensor& v);
  /// Keeps the rows `index` [n] int64 only, in that order, and frees the memory of the rest.
  void keep(const at::Tensor& index);
  /// Drops the last `count` rows.
  void drop_last(int64_t count) { length_ -= count; }
  /// Bytes allocated.
  size_t bytes() const { return keys_.defined() ? keys_.nbytes() + values_.nbytes() : 0; }

 private:
  void reserve(int64_t length, const at::Tensor& like);
  at::Tensor keys_, values_;  // [Hkv, capacity, d]
  int64_t length_ = 0;
};

/// One sequence's cache; layers may differ in length after pruning.
struct KvCache {
  KvCache() = default;
  explicit KvCache(int64_t count) : layers(count) {}
  std::vector<LayerCache> layers;

  size_t bytes() const {
    size_t sum = 0;
    for (const LayerCache& layer : layers) sum += layer.bytes();
    return sum;
  }
};

}  // namespace glimpse
