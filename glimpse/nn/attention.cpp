#include "glimpse/nn/attention.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "glimpse/nn/device.h"
#include "glimpse/nn/flash.h"
#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"
#include "glimpse/nn/row_blocks.h"

namespace glimpse {

namespace {

// q [..., d] / sqrt(d), float32.
at::Tensor scaled_queries(const at::Tensor& q) {
  return q.to(at::kFloat).mul(1.0 / std::sqrt(static_cast<double>(q.size(-1)))).contiguous();
}

// scores[h - first, :] = q[h] . keys for the query heads [first, last) that share these keys [count, d], read
// once per max_rows of them; q [..., H, d] float32, rows of scores `stride` numbers apart.
template <class T>
void score_keys(const at::Tensor& q, int64_t first, int64_t last, const T* keys, int64_t count, float* scores,
                int64_t stride) {
  const int64_t d = q.size(-1);
  for (int64_t h = first; h < last; h += kernels::max_rows)
    kernels::dots(q.const_data_ptr<float>() + h * d, d, std::min(kernels::max_rows, last - h), d, keys, 0,
                  count, scores + (h - first) * stride, stride);
}

// Consecutive keys and values of one cache head, for up to max_rows queries at once.
template <class T>
struct PlainRows {
  const T *keys, *values;
  int64_t d;
  void dots(const float* q, int64_t rows, int64_t count, float* scores, int64_t stride) const {
    kernels::dots(q, d, rows, d, keys, 0, count, scores, stride);
  }
  void mix(const float* p, int64_t stride, int64_t rows, int64_t count, float* out) const {
    kernels::mix(p, stride, rows, count, values, d, out);
  }
};
struct CodedRows {
  const uint8_t *keys, *values;
  kv::RowShape shape;
  void dots(const float* q, int64_t rows, int64_t count, float* scores, int64_t stride) const {
    kv::dots(q, rows, keys, count, shape, scores, stride);
  }
  void mix(const float* p, int64_t stride, int64_t rows, int64_t count, float* out) const {
    kv::mix(p, stride, rows, values, count, shape, out);
  }
};

// One new row, q [1, H, d] scaled float32: the query heads of a cache head are folded into rows, so its keys
// and values are read once. A long cache is cut into parts, so that there is work for more threads than there
// are cache heads; where it is cut depends on its length alone. rows(h, first): those of cache head h from
// row `first` on.
template <class RowsOf>
at::Tensor decode_attention(const at::Tensor& q, int64_t kv_heads, int64_t length, const RowsOf& rows_of) {
  constexpr int64_t part_keys = 2048;
  const int64_t d = q.size(2), heads = q.size(1), group = heads / kv_heads;
  const int64_t step = next_block(length, part_keys), parts = (length + step - 1) / step;
  at::Tensor scores = at::empty({heads, length}, q.options());
  at::Tensor sums = at::empty({parts, heads, 1}, q.options());  // of exp(score), their logarithm
  at::Tensor out = at::empty({parts, heads, d}, q.options());
  const auto attend = [&](int64_t part, int64_t h) {
    const int64_t first = part * step, count = std::min(step, length - first);
    const auto own = rows_of(h, first);
    for (int64_t row = h * group; row < (h + 1) * group; row += kernels::max_rows) {
      const int64_t rows = std::min(kernels::max_rows, (h + 1) * group - row), to = part * heads + row;
      float* const s = scores.data_ptr<float>() + row * length + first;
      own.dots(q.const_data_ptr<float>() + row * d, rows, count, s, length);
      for (int64_t r = 0; r < rows; ++r)
        sums.data_ptr<float>()[to + r] = kernels::softmax(s + r * length, count);
      own.mix(s, length, rows, count, out.data_ptr<float>() + to * d);
    }
  };
  // Short contexts are not worth waking a second thread.
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, step * d * group));
  at::parallel_for(0, parts * kv_heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attend(i / kv_heads, i % kv_heads);
  });
  // Softmax over the last dimension, whose result does not depend on the number of threads in any libtorch.
  if (parts > 1) out.mul_(sums.squeeze(2).t().softmax(1).t().unsqueeze(2));
  return (parts == 1 ? out[0] : out.sum(0)).view({1, heads * d});
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values) {
  const int64_t d = keys.size(2), stride = keys.stride(0);
  at::Tensor out;
  with_element(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    out = decode_attention(scaled_queries(q), keys.size(0), keys.size(1), [&](int64_t h, int64_t first) {
      const int64_t at = h * stride + first * d;
      return PlainRows<T>{element_data<T>(keys) + at, element_data<T>(values) + at, d};
    });
  });
  return out.to(q.scalar_type());
}

// Over the last `count` of `length` rows. Keys in codes were rotated, so the query is, too.
at::Tensor decode_attention(const at::Tensor& q, const LayerCache::Codes& codes, int64_t length,
                            int64_t count) {
  const at::Tensor wide = scaled_queries(q);
  for (int64_t h = 0; h < q.size(1); ++h) kv::rotate(wide.data_ptr<float>() + h * q.size(2), q.size(2));
  return decode_attention(wide, codes.heads, count,
                          [&](int64_t h, int64_t first) {
                            const int64_t at =
                                h * codes.head_stride + (length - count + first) * codes.shape.bytes();
                            return CodedRows{codes.keys + at, codes.values + at, codes.shape};
                          })
      .to(q.scalar_type());
}

// Consecutive rows of q that attend to as many, or more, consecutive rows of k and v.
struct RowRange {
  int64_t first_q, rows, first_k, keys;
};

// Flash attention (nn/flash.h): q [R, H, d], k [S, Hkv, d], v [S, Hkv, dv], any strides -> [R, H * dv].
at::Tensor flash_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                           const std::vector<RowRange>& ranges, bool causal, int64_t window = 0) {
  const auto packed = [](const at::Tensor& t) { return t.stride(2) == 1 ? t : t.contiguous(); };
  const at::Tensor q = packed(queries), k = packed(keys), v = packed(values);
  const int64_t heads = q.size(1), kv_heads = k.size(1), group = heads / kv_heads, d = q.size(2),
                dv = v.size(2);
  at::Tensor out = at::empty({q.size(0), heads * dv}, q.options());
  const int64_t step = flash::block_rows(group);
  struct Task {
    const RowRange* range;
    int64_t head, first;
  };
  std::vector<Task> tasks;
  for (const RowRange& range : ranges)
    for (int64_t first = 0; first < range.rows; first += step)
      for (int64_t head = 0; head < kv_heads; ++head) tasks.push_back({&range, head, first});
  const auto count = static_cast<int64_t>(tasks.size());
  const bool pairs = bf16_gemm_path() == GemmPath::paired;
  with_element(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    parallel_tasks(count, [&](int64_t i) {
      thread_local std::vector<float> scratch;
      // The last rows see most keys, so they come first: what is left for the end is small.
      const auto& [range, head, first] = tasks[count - 1 - i];
      const int64_t last = std::min(first + step, range->rows);
      scratch.resize(flash::scratch_size(last - first, group, d, dv));
      const flash::Heads<T> work{
          element_data<T>(q) + range->first_q * q.stride(0) + head * group * q.stride(1),
          element_data<T>(k) + range->first_k * k.stride(0) + head * k.stride(1),
          element_data<T>(v) + range->first_k * v.stride(0) + head * v.stride(1),
          range->rows,
          range->keys,
          group,
          d,
          dv,
          q.stride(0),
          q.stride(1),
          k.stride(0),
          v.stride(0),
          heads * dv,
          dv,
          causal,
          pairs,
          window};
      flash::attend(work, first, last, element_data<T>(out) + range->first_q * heads * dv + head * group * dv,
                    scratch.data());
    });
  });
  return out;
}

bool have_kernels(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return has_kernel(q) && has_kernel(k) && has_kernel(v) && q.scalar_type() == k.scalar_type() &&
         q.scalar_type() == v.scalar_type();
}

}  // namespace

bool has_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const bool grad =
      at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  return q.is_cuda() && q.scalar_type() == at::kBFloat16 && !grad && q.size(-1) % 8 == 0 &&
         q.size(-1) <= 256 && v.size(-1) == q.size(-1);
}

namespace {

// n + (n - 1) + ..., `count` numbers or those above 0.
int64_t sum_up_to(int64_t n, int64_t count) {
  count = std::clamp<int64_t>(n, 0, count);
  return count * n - count * (count - 1) / 2;
}

}  // namespace

at::Tensor causal_attention(const at::Tensor& q, const LayerCache& cache, int64_t window) {
  if (window == 0) window = cache.length();
  // The keys that any of the rows sees.
  const int64_t rows = q.size(0), length = std::min(cache.length(), window + rows - 1);
  const bool slides = rows > 1 && window < length;
  flop_count::add(4 * q.size(1) * q.size(2) * (sum_up_to(length, rows) - sum_up_to(length - window, rows)));
  if (rows == 1 && cache.is_coded() && has_kernel(q))
    return decode_attention(q, cache.codes(), cache.length(), length);
  // Codes that are read otherwise have been widened.
  const auto newest = [&](const at::Tensor& t) {
    return (cache.is_coded() ? t.to(q.scalar_type()) : t).narrow(1, cache.length() - length, length);
  };
  const at::Tensor keys = newest(cache.keys()), values = newest(cache.values());
  if (have_kernels(q, keys, values))
    return rows == 1 ? decode_attention(q, keys, values)
                     : flash_attention(q, keys.transpose(0, 1), values.transpose(0, 1),
                                       {{0, rows, 0, length}}, true, slides ? window : 0);
  if (!slides && has_flash(q, keys, values)) {  // whose causal mask ends at the last key, as ours does
    const auto one = [](const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
    return std::get<0>(at::_flash_attention_forward(q.unsqueeze(0), one(keys), one(values), {}, {}, rows,
                                                    length, 0.0, rows > 1, false))
        .view({rows, -1});
  }
  std::optional<at::Tensor> mask;
  // Rows that continue a cache: row i sees length - rows + i + 1 keys.
  if (rows > 1 && (rows != length || slides)) {
    mask = at::ones({rows, length}, q.options().dtype(at::kBool)).tril(length - rows);
    if (slides) mask = mask->triu(length - rows - window + 1);
  }
  const at::Tensor out =
      at::scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0),
                                       mask, 0.0, !mask && rows > 1, std::nullopt, q.size(1) != keys.size(0));
  return out.squeeze(0).transpose(0, 1).reshape({rows, -1});
}

at::Tensor attention_logits(const at::Tensor& q, const at::Tensor& keys) {
  const int64_t kv_heads = keys.size(0), length = keys.size(1), d = keys.size(2),
                group = q.size(0) / kv_heads;
  flop_count::add(2 * q.numel() * length);
  if (has_kernel(q) && has_kernel(keys) && q.scalar_type() == keys.scalar_type() && keys.stride(1) == d) {
    const at::Tensor wide = scaled_queries(q);
    at::Tensor scores = at::empty({q.size(0), length}, wide.options());
    with_element(q.scalar_type(), [&](auto element) {
      const auto* const data = element_data<decltype(element)>(keys);
      for (int64_t h = 0; h < kv_heads; ++h)
        score_keys(wide, h * group, (h + 1) * group, data + h * keys.stride(0), length,
                   scores.data_ptr<float>() + h * group * length, length);
    });
    return scores;
  }
  const at::Tensor rows = q.to(at::kFloat).view({kv_heads, -1, d});
  return (at::matmul(rows, keys.to(at::kFloat).transpose(1, 2)) / std::sqrt(static_cast<double>(d)))
      .flatten(0, 1);
}

at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k) {
  flop_count::add(2 * q.numel() * k.size(1));
  const at::Tensor scaled = q / std::sqrt(static_cast<double>(q.size(2)));
  return at::einsum("nhd,nthd->nht", {scaled, k}).softmax(2);
}

namespace {

// Column sums of softmax(q k^T): q, k [T, d] float32, q scaled -> adds them to sums [T]. Holds one
// cache-sized block of weights.
void add_column_sums(const at::Tensor& q, const at::Tensor& k, at::Tensor& sums) {
  const int64_t length = q.size(0), block = std::max<int64_t>(8, (q.is_cpu() ? 1 << 20 : 1 << 26) / length);
  at::Tensor weights = at::empty({std::min(block, length), length}, q.options());
  for (int64_t row = 0; row < length; row += block) {
    at::Tensor part = weights.narrow(0, 0, std::min(block, length - row));
    at::mm_out(part, q.narrow(0, row, part.size(0)), k.t());
    if (!has_kernel(k)) {
      sums += part.softmax(1).sum(0);
      continue;
    }
    float* const sum = sums.data_ptr<float>();
    for (int64_t r = 0; r < part.size(0); ++r) {
      float* const own = part.data_ptr<float>() + r * length;
      kernels::softmax(own, length);
      for (int64_t i = 0; i < length; ++i) sum[i] += own[i];
    }
  }
}

// The same over all heads of q, k [T, H, d]. Every thread works on heads of its own and widens one at a time.
at::Tensor column_sums(const at::Tensor& q, const at::Tensor& k) {
  const int64_t heads = q.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  at::Tensor sums = at::zeros({heads, q.size(0)}, q.options().dtype(at::kFloat));
  const auto run = [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;  // of this thread
    for (int64_t h = begin; h < end; ++h) {
      at::Tensor own = sums[h];
      add_column_sums((q.select(1, h).to(at::kFloat) * scale).contiguous(),
                      k.select(1, h).to(at::kFloat).contiguous(), own);
    }
  };
  if (q.is_cpu())
    at::parallel_for(0, heads, 1, run);
  else
    run(0, heads);
  return sums.sum(0);
}

}  // namespace

at::Tensor received_attention(const at::Tensor& q, const at::Tensor& k, const std::vector<int64_t>& lengths) {
  std::vector<at::Tensor> out;
  int64_t first = 0;
  for (const int64_t length : lengths) {
    flop_count::add(2 * length * length * q.size(1) * q.size(2));
    const at::Tensor sums = column_sums(q.narrow(0, first, length), k.narrow(0, first, length));
    out.push_back(sums / static_cast<double>(q.size(1) * length));
    first += length;
  }
  return at::cat(out);
}

int64_t Segments::longest() const {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

const at::Tensor& Segments::offsets(at::Device device) const {
  if (!offsets_.defined() || offsets_.device() != device) {
    std::vector<int> ends = {0};
    for (const int64_t length : lengths) ends.push_back(ends.back() + static_cast<int>(length));
    offsets_ = to_device(at::tensor(ends, at::kInt), device);
  }
  return offsets_;
}

at::Tensor segment_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const Segments& segments, bool causal) {
  const int64_t d = q.size(2), dv = v.size(2);
  if (!have_kernels(q, k, v) && dv < d)  // libtorch's fused attention wants one width
    return segment_attention(q, k, at::constant_pad_nd(v, {0, d - dv}), segments, causal)
        .view({q.size(0), -1, d})
        .narrow(2, 0, dv)
        .flatten(1);
  const std::vector<int64_t>& lengths = segments.lengths;
  for (const int64_t length : lengths)
    flop_count::add((causal ? length * (length + 1) : 2 * length * length) * q.size(1) * (d + dv));
  if (have_kernels(q, k, v)) {
    std::vector<RowRange> ranges;
    int64_t first = 0;
    for (const int64_t length : lengths) {
      ranges.push_back({first, length, first, length});
      first += length;
    }
    return flash_attention(q, k, v, ranges, causal);
  }
  if (has_flash(q, k, v)) {
    const at::Tensor& offsets = segments.offsets(q.device());
    const int64_t longest = segments.longest();
    return std::get<0>(
               at::_flash_attention_forward(q, k, v, offsets, offsets, longest, longest, 0.0, causal, false))
        .flatten(1);
  }
  // Segments of equal length run as one batch.
  std::map<int64_t, std::vector<int64_t>> starts;  // segment length -> first rows
  int64_t row = 0;
  for (const int64_t length : lengths) {
    starts[length].push_back(row);
    row += length;
  }
  const int64_t heads = q.size(1);
  const auto attend = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t length) {
    const auto split = [&](const at::Tensor& t) {
      return t.view({-1, length, t.size(1), t.size(2)}).transpose(1, 2);
    };
    return at::scaled_dot_product_attention(split(a), split(b), split(c), std::nullopt, 0.0, causal,
                                            std::nullopt, a.size(1) != b.size(1))
        .transpose(1, 2)
        .reshape({-1, heads * c.size(2)});
  };
  if (starts.size() == 1) return attend(q, k, v, starts.begin()->first);
  at::Tensor out = at::empty({q.size(0), heads * v.size(2)}, q.options());
  for (const auto& [length, firsts] : starts) {
    const at::Tensor first = at::tensor(firsts, at::kLong);
    const at::Tensor index = to_device((first.unsqueeze(1) + at::arange(length)).flatten(), q.device());
    const auto pick = [&](const at::Tensor& t) { return t.index_select(0, index); };
    out.index_copy_(0, index, attend(pick(q), pick(k), pick(v), length));
  }
  return out;
}

}  // namespace glimpse
