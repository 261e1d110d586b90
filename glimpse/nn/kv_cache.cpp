#include "glimpse/nn/kv_cache.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/cuda_ops.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {

constexpr int64_t kHeadroom = 64;  // rows allocated ahead, so that decoding rarely grows the cache

// Calls f(head, first, count) for the rows of all heads, in parts on all threads.
template <class Function>
void for_parts(int64_t heads, int64_t rows, const Function& f) {
  constexpr int64_t step = 64;
  const int64_t parts = (rows + step - 1) / step;
  at::parallel_for(0, heads * parts, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * step;
      f(i / parts, first, std::min(step, rows - first));
    }
  });
}

// Rows [Hkv, n, d] of any type, their last dimension packed -> bytes [Hkv, n, bytes of a row].
void quantise(const at::Tensor& rows, const kv::RowShape& shape, bool rotated, const at::Tensor& to) {
  with_element(rows.scalar_type(), [&](auto element) {
    using T = decltype(element);
    for_parts(rows.size(0), rows.size(1), [&](int64_t head, int64_t first, int64_t count) {
      for (int64_t row = first; row < first + count; ++row)
        kv::quantise(element_data<T>(rows) + head * rows.stride(0) + row * rows.stride(1), shape, rotated,
                     to.data_ptr<uint8_t>() + head * to.stride(0) + row * to.stride(1));
    });
  });
}

}  // namespace

int64_t LayerCache::capacity_of(int64_t length) {
  return length + std::max(kHeadroom, length / 4);
}

size_t LayerCache::row_bytes(KvFormat format, int64_t d, size_t itemsize) {
  if (format == KvFormat::plain) return static_cast<size_t>(d) * itemsize;
  return static_cast<size_t>(kv::RowShape{d, format == KvFormat::int8 ? 8 : 4}.bytes());
}

bool LayerCache::Rows::have_room(int64_t length) const {
  return keys.defined() && !are_shared() && length <= keys.size(1);
}

// Rows to allocate when `rows` have no room for `length`. What grows once will grow again, but a copy's first
// rows of its own are like the first of a new cache.
int64_t LayerCache::grown(const Rows& rows, int64_t length) const {
  return length_ > 0 && rows.keys.defined() && !rows.are_shared() ? capacity_of(length) : length + kHeadroom;
}

// Room for rows as they come. A closed cache of codes opens.
void LayerCache::reserve(int64_t length, int64_t kv_heads, int64_t d, at::TensorOptions options) {
  if (plain_.have_room(length)) return;
  const at::Tensor keys = at::empty({kv_heads, grown(plain_, length), d}, options),
                   values = at::empty_like(keys);
  if (length_ > 0) {
    keys.narrow(1, 0, length_).copy_(this->keys());
    values.narrow(1, 0, length_).copy_(this->values());
  }
  plain_ = {keys, values};
}

void LayerCache::reserve_codes(int64_t length) {
  if (codes_.have_room(length)) return;
  const at::Tensor keys = at::empty({heads_, grown(codes_, length), shape().bytes()}, at::kByte),
                   values = at::empty_like(keys);
  if (coded_ > 0) {
    keys.narrow(1, 0, coded_).copy_(codes_.keys.narrow(1, 0, coded_));
    values.narrow(1, 0, coded_).copy_(codes_.values.narrow(1, 0, coded_));
  }
  codes_ = {keys, values};
}

// Codes of the rows keys, values [Hkv, n, d] from row `at` on.
void LayerCache::round(const at::Tensor& keys, const at::Tensor& values, int64_t at) {
  const int64_t count = keys.size(1);
  reserve_codes(at + count);
  quantise(keys, shape(), true, codes_.keys.narrow(1, at, count));
  quantise(values, shape(), false, codes_.values.narrow(1, at, count));
  coded_ = at + count;
}

at::Tensor LayerCache::widened(const at::Tensor& codes, bool rotated) const {
  const kv::RowShape shape = this->shape();
  const at::Tensor out = at::empty({heads_, length_, d_}, at::kFloat);
  for_parts(heads_, length_, [&](int64_t head, int64_t first, int64_t count) {
    float* const to = out.data_ptr<float>() + (head * length_ + first) * d_;
    kv::widen(codes.const_data_ptr<uint8_t>() + head * codes.stride(0) + first * shape.bytes(), count, shape,
              to);
    for (int64_t row = 0; rotated && row < count; ++row) kv::rotate(to + row * d_, d_);
  });
  return out;
}

void LayerCache::append(const at::Tensor& k, const at::Tensor& v, int64_t more) {
  const int64_t count = k.size(0);
  const at::Tensor new_keys = k.transpose(0, 1), new_values = v.transpose(0, 1);
  const bool gradients = at::GradMode::is_enabled() && (k.requires_grad() || v.requires_grad());
  if (format_ != KvFormat::plain) {
    invariant(!gradients, "rows with gradients went into a KV cache of 8 or 4 bits");
    check_kv_format(format_, k.size(2), k.device());
    heads_ = k.size(1), d_ = k.size(2);
    if (is_coded() && length_ > 0 && count == 1 && more == 0) {
      const auto packed = [](const at::Tensor& t) { return t.stride(2) == 1 ? t : t.contiguous(); };
      round(packed(new_keys), packed(new_values), length_);
      length_ += 1;
      return;
    }
  }
  if (gradients) {
    plain_ = length_ ? Rows{at::cat({keys(), new_keys}, 1), at::cat({values(), new_values}, 1)}
                     : Rows{new_keys, new_values};
    length_ += count;
    return;
  }
  reserve(length_ + count + more, k.size(1), k.size(2), k.options());
  plain_.keys.narrow(1, length_, count).copy_(new_keys);
  plain_.values.narrow(1, length_, count).copy_(new_values);
  length_ += count;
}

void LayerCache::close() {
  if (format_ == KvFormat::plain || !plain_.keys.defined()) return;
  const int64_t count = length_ - coded_;
  round(plain_.keys.narrow(1, coded_, count), plain_.values.narrow(1, coded_, count), coded_);
  plain_ = {};
}

void LayerCache::grow(int64_t count) {
  reserve(length_ + count, plain_.keys.size(0), plain_.keys.size(2), plain_.keys.options());
  length_ += count;
}

LayerCache::Codes LayerCache::codes() const {
  return {codes_.keys.const_data_ptr<uint8_t>(), codes_.values.const_data_ptr<uint8_t>(),
          codes_.keys.stride(0), heads_, shape()};
}

void LayerCache::keep(const at::Tensor& index) {
  close();
  Rows& rows = is_coded() ? codes_ : plain_;
  const int64_t count = index.size(0);
  const at::Tensor old_keys = part(rows.keys), old_values = part(rows.values);
  if (at::GradMode::is_enabled() && (old_keys.requires_grad() || old_values.requires_grad())) {
    rows = {old_keys.index_select(1, index), old_values.index_select(1, index)};
  } else {
    at::Tensor keys = at::empty({old_keys.size(0), count + kHeadroom, old_keys.size(2)}, old_keys.options());
    at::Tensor values = at::empty_like(keys);
    if (cuda::has_kernel(rows.keys)) {
      cuda::gather_rows(rows.keys, rows.values, index, keys, values);
    } else {
      keys.narrow(1, 0, count).copy_(old_keys.index_select(1, index));
      values.narrow(1, 0, count).copy_(old_values.index_select(1, index));
    }
    rows = {keys, values};
  }
  length_ = count;
  coded_ = is_coded() ? count : 0;
}

void LayerCache::drop_last(int64_t count) {
  length_ -= count;
  coded_ = std::min(coded_, length_);
}

LayerCache LayerCache::first(int64_t count) const {
  LayerCache out = *this;
  out.close();
  Rows& rows = out.is_coded() ? out.codes_ : out.plain_;
  const auto copy = [&](const at::Tensor& t) {
    return t.narrow(1, 0, count).clone(at::MemoryFormat::Contiguous);
  };
  rows = {copy(rows.keys), copy(rows.values)};
  out.length_ = count;
  out.coded_ = out.is_coded() ? count : 0;
  return out;
}

LayerCache LayerCache::restored(KvFormat format, int64_t d, const at::Tensor& keys,
                                const at::Tensor& values) {
  const bool coded = format != KvFormat::plain;
  check(keys.dim() == 3 && keys.sizes() == values.sizes() && keys.dtype() == values.dtype() && d > 0 &&
            (!coded || d % kv::head_unit == 0) &&
            keys.size(2) * keys.element_size() ==
                static_cast<int64_t>(row_bytes(format, d, keys.element_size())) &&
            (keys.scalar_type() == at::kByte) == coded,
        "a KV cache: keys ", keys.sizes(), " and values ", values.sizes(), " do not belong to heads of ", d,
        " in this format");
  LayerCache out(format);
  const auto copy = [](const at::Tensor& t) { return t.clone(at::MemoryFormat::Contiguous); };
  (coded ? out.codes_ : out.plain_) = {copy(keys), copy(values)};
  out.length_ = keys.size(1);
  if (coded) out.coded_ = out.length_, out.heads_ = keys.size(0), out.d_ = d;
  return out;
}

KvFormat parse_kv_format(const std::string& name) {
  using enum KvFormat;
  for (const auto& [known, format] : {std::pair{"bf16", plain}, {"int8", int8}, {"int4", int4}})
    if (name == known) return format;
  fail("kv: expected bf16, int8 or int4, got '", name, "'");
}

void check_kv_format(KvFormat format, int64_t d, at::Device device) {
  if (format == KvFormat::plain) return;
  const char* const name = format == KvFormat::int8 ? "int8" : "int4";
  check(device.is_cpu(), "kv: ", name,
        " was asked for, which only the CPU has kernels for, but the device is ", device.str(),
        "; leave it bf16");
  check(d % kv::head_unit == 0, "kv: ", name, " needs heads of a multiple of ", kv::head_unit,
        " numbers, this model's have ", d, "; leave it bf16");
}

}  // namespace glimpse
