#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace glimpse {

/// Keys (after RoPE) and values of one sequence at one layer. Copies share their memory until one of them is
/// changed: it then gets memory of its own, so no copy ever sees another's rows.
class LayerCache {
 public:
  int64_t length() const { return length_; }
  at::Tensor keys() const { return keys_.narrow(1, 0, length_); }      ///< [Hkv, length, d]
  at::Tensor values() const { return values_.narrow(1, 0, length_); }  ///< [Hkv, length, d]

  /// Adds rows k, v [T, Hkv, d] at the end and makes room for `more` that will follow. Rows that require
  /// gradients always make a new tensor.
  void append(const at::Tensor& k, const at::Tensor& v, int64_t more = 0);
  /// Makes room for `count` more rows at the end, which the caller fills. There are some already.
  void grow(int64_t count);
  /// Where the first row of the first head lies, and how many elements the heads lie apart: what keys() and
  /// values() begin with, at less cost where it is asked for every layer and sequence of a decoding step.
  struct Memory {
    void *keys, *values;
    int64_t head_stride;
  };
  Memory memory() const { return {keys_.data_ptr(), values_.data_ptr(), keys_.stride(0)}; }
  /// Keeps the rows `index` [n] int64 only, in that order, and frees the memory of the rest.
  void keep(const at::Tensor& index);
  /// Drops the last `count` rows.
  void drop_last(int64_t count) { length_ -= count; }
  /// A copy of the first `count` rows, in memory of exactly that size.
  LayerCache first(int64_t count) const;
  /// The most rows that a cache of `length` rows has allocated.
  static int64_t capacity_of(int64_t length);
  /// Bytes allocated.
  size_t bytes() const { return keys_.defined() ? keys_.nbytes() + values_.nbytes() : 0; }

 private:
  void reserve(int64_t length, int64_t kv_heads, int64_t d, at::TensorOptions options);
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
