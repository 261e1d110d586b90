#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "glimpse/nn/kv_codes.h"

namespace glimpse {

/// How a cache holds rows: as they come, or rounded to 8 or 4 bits (nn/kv_codes.h), keys after a Hadamard
/// transform, which spreads the few large numbers of a key over all.
enum class KvFormat { plain, int8, int4 };

/// Keys (after RoPE) and values of one sequence at one layer. Copies share their memory until one of them is
/// changed: it then gets memory of its own, so no copy ever sees another's rows.
///
/// A cache of codes is open while a prompt's rows run through its layer: they lie in it as they came, and so
/// do those before, widened, until close() rounds them. So all rows that are computed together see each other
/// unrounded, in however many blocks they come, and only one layer at a time holds them so. A single row that
/// is appended to a closed cache is rounded at once. Rows once rounded never change.
class LayerCache {
 public:
  LayerCache() = default;
  explicit LayerCache(KvFormat format) : format_(format) {}
  /// Of what stored_keys() and stored_values() gave, in memory of its own. Error if they do not fit `format`
  /// and heads of `d`.
  static LayerCache restored(KvFormat format, int64_t d, const at::Tensor& keys, const at::Tensor& values);

  KvFormat format() const { return format_; }
  int64_t length() const { return length_; }
  int64_t head_dim() const { return is_coded() ? d_ : plain_.keys.size(2); }
  /// [Hkv, length, d]; of a closed cache of codes a widened copy, float32.
  at::Tensor keys() const { return is_coded() ? widened(codes_.keys, true) : part(plain_.keys); }
  at::Tensor values() const { return is_coded() ? widened(codes_.values, false) : part(plain_.values); }
  at::Device device() const { return held().keys.device(); }

  /// Adds rows k, v [T, Hkv, d] at the end and makes room for `more` that will follow. Rows that require
  /// gradients always make a new tensor; they need a plain cache.
  void append(const at::Tensor& k, const at::Tensor& v, int64_t more = 0);
  /// Rounds the rows of a cache of codes that are not yet, and frees them as they came.
  void close();
  /// Makes room for `count` more rows at the end of a plain cache, which the caller fills. There are some
  /// already.
  void grow(int64_t count);
  /// Where the first row of the first head lies, and how many elements the heads lie apart: what keys() and
  /// values() of a plain cache begin with, at less cost where it is asked for every layer and sequence of a
  /// decoding step.
  struct Memory {
    void *keys, *values;
    int64_t head_stride;
  };
  Memory memory() const { return {plain_.keys.data_ptr(), plain_.values.data_ptr(), plain_.keys.stride(0)}; }
  /// Whether its rows are codes now: closed and not plain.
  bool is_coded() const { return codes_.keys.defined() && !plain_.keys.defined(); }
  /// The same for the kernels of nn/kv_codes.h: bytes.
  struct Codes {
    const uint8_t *keys, *values;
    int64_t head_stride, heads;
    kv::RowShape shape;
  };
  Codes codes() const;
  /// Keeps the rows `index` [n] int64 only, in that order, and frees the memory of the rest.
  void keep(const at::Tensor& index);
  /// Drops the last `count` rows.
  void drop_last(int64_t count);
  /// A copy of the first `count` rows, closed, in memory of exactly that size.
  LayerCache first(int64_t count) const;
  /// What a closed cache holds: rows [Hkv, length, d] as they came, or bytes [Hkv, length, bytes of a row].
  at::Tensor stored_keys() const { return part(held().keys); }
  at::Tensor stored_values() const { return part(held().values); }

  /// The most rows that a cache of `length` rows has allocated.
  static int64_t capacity_of(int64_t length);
  /// What one head's key or value takes in a closed cache; `itemsize`: of a number as it comes.
  static size_t row_bytes(KvFormat format, int64_t d, size_t itemsize);
  /// Bytes allocated.
  size_t bytes() const { return plain_.bytes() + codes_.bytes(); }

 private:
  struct Rows {
    at::Tensor keys, values;  // [Hkv, capacity, width]
    size_t bytes() const { return keys.defined() ? keys.nbytes() + values.nbytes() : 0; }
    bool have_room(int64_t length) const;
    bool are_shared() const { return keys.defined() && keys.use_count() > 1; }  // with a copy of this cache
  };
  const Rows& held() const { return is_coded() ? codes_ : plain_; }
  at::Tensor part(const at::Tensor& rows) const { return rows.narrow(1, 0, length_); }
  kv::RowShape shape() const { return {d_, format_ == KvFormat::int8 ? 8 : 4}; }
  int64_t grown(const Rows& rows, int64_t length) const;
  void reserve(int64_t length, int64_t kv_heads, int64_t d, at::TensorOptions options);
  void reserve_codes(int64_t length);
  void round(const at::Tensor& keys, const at::Tensor& values, int64_t at);
  at::Tensor widened(const at::Tensor& codes, bool rotated) const;

  KvFormat format_ = KvFormat::plain;
  Rows plain_;  // rows as they came; of a cache of codes only while it is open
  Rows codes_;  // bytes
  int64_t length_ = 0;
  int64_t coded_ = 0;          // rows that have codes
  int64_t heads_ = 0, d_ = 0;  // of a cache of codes
};

/// One sequence's cache; layers may differ in length after pruning.
struct KvCache {
  KvCache() = default;
  explicit KvCache(int64_t count, KvFormat format = KvFormat::plain) : layers(count, LayerCache(format)) {}
  std::vector<LayerCache> layers;

  size_t bytes() const {
    size_t sum = 0;
    for (const LayerCache& layer : layers) sum += layer.bytes();
    return sum;
  }
};

/// What "bf16" (plain), "int8" and "int4" mean; an error for anything else.
KvFormat parse_kv_format(const std::string& name);
/// Error unless caches of this format can be on the device and have heads of `d`.
void check_kv_format(KvFormat format, int64_t d, at::Device device);

}  // namespace glimpse
