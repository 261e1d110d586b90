#include "glimpse/nn/low_bit.h"

#include <ATen/Parallel.h>

#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/nn/low_bit_kernels.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"
#include "glimpse/nn/step_kernels.h"
#include "glimpse/nn/steps.h"

namespace glimpse {

namespace {

constexpr int64_t kColumns = low_bit::block_columns;
constexpr int kMostMultiple = 15;         // times -8 it has 8 bits
constexpr int64_t kMostInputs = 1 << 16;  // so that sums of 255 x 127 have 32 bits

int64_t rounded_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

constexpr float kWhole = 3 << 22;  // a float has no digits after the point there

// Squared errors of rounding v [n] to [-8, 7] / inverse. Sums in lanes of their own and rounding by addition
// are quick on any CPU, and the same.
float rounding_error(const float* v, int64_t n, float inverse) {
  constexpr int64_t lanes = 8;
  const float scale = 1.0f / inverse;
  std::array<float, lanes> sums = {};
  const auto add = [&](float x, float& sum) {
    const float q = std::min(7.0f, std::max(-8.0f, x * inverse + kWhole - kWhole));
    sum += (q * scale - x) * (q * scale - x);
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane) add(v[i + lane], sums[lane]);
  for (; i < n; ++i) add(v[i], sums[0]);
  return std::accumulate(sums.begin(), sums.end(), 0.0f);
}

// The number of largest magnitude among v [n].
float extreme(const float* v, int64_t n) {
  float found = 0;
  for (int64_t i = 0; i < n; ++i)
    if (std::abs(v[i]) > std::abs(found)) found = v[i];
  return found;
}

// The multiple of `scale` that rounds a group v [n] to 4 bits with the least error among those that map its
// largest magnitude to about -8, the end of the range that has one step more.
int group_multiple(const float* v, int64_t n, float scale) {
  const float ideal = scale == 0 ? 0 : extreme(v, n) / (-8 * scale);
  if (ideal == 0) return 0;
  int best = 0;
  float least = INFINITY;
  for (const float around : {0.9f, 1.0f, 1.15f})
    for (const float candidate : {std::floor(ideal * around), std::ceil(ideal * around)}) {
      if (candidate == 0 || std::abs(candidate) > kMostMultiple) continue;
      const float error = rounding_error(v, n, 1 / (candidate * scale));
      if (error < least) {
        least = error;
        best = static_cast<int>(candidate);
      }
    }
  return best;
}

int to_step(float value, float scale, int low, int high) {
  return scale == 0 ? 0 : std::clamp(static_cast<int>(value / scale + kWhole - kWhole), low, high);
}

void quantise8(const float* rows, int64_t in, int64_t real, int64_t block, LowBitWeight& to) {
  const int64_t quads = to.data.size(1);
  int8_t* data = to.data.data_ptr<int8_t>() + block * quads * 4 * kColumns;
  for (int64_t c = 0; c < kColumns; ++c) {
    const float* row = rows + c * in;
    float top = 0;
    for (int64_t i = 0; c < real && i < in; ++i) top = std::max(top, std::abs(row[i]));
    const float scale = top / 127;
    int32_t sum = 0;
    for (int64_t i = 0; i < quads * 4; ++i) {
      const int step = c < real && i < in ? to_step(row[i], scale, -127, 127) : 0;
      data[(i / 4 * kColumns + c) * 4 + i % 4] = static_cast<int8_t>(step);
      sum += step;
    }
    to.scale.data_ptr<float>()[block * kColumns + c] = scale;
    to.correction.data_ptr<int32_t>()[block * kColumns + c] = -128 * sum;
  }
}

void quantise4(const float* rows, int64_t in, int64_t real, int64_t block, LowBitWeight& to) {
  const int64_t pairs = to.data.size(1), groups = to.multiple.size(1);
  uint8_t* data = to.data.data_ptr<uint8_t>() + block * pairs * 4 * kColumns;
  int8_t* multiples = to.multiple.data_ptr<int8_t>() + block * groups * kColumns;
  for (int64_t c = 0; c < kColumns; ++c) {
    const float* row = rows + c * in;
    const float scale = c < real ? std::abs(extreme(row, in)) / (8 * kMostMultiple) : 0;
    int sum = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * to.group, count = c < real ? std::clamp<int64_t>(in - first, 0, to.group) : 0;
      const int multiple = group_multiple(row + first, count, scale);
      multiples[g * kColumns + c] = static_cast<int8_t>(multiple);
      for (int64_t i = 0; i < count; ++i) {
        const int step = to_step(row[first + i], static_cast<float>(multiple) * scale, -8, 7);
        const int64_t at = first + i, quad = at / 4;
        uint8_t& byte = data[(quad / 2 * kColumns + c) * 4 + at % 4];
        byte = static_cast<uint8_t>(byte | (step & 15) << (quad % 2 * 4));
        sum += multiple * step;
      }
    }
    to.scale.data_ptr<float>()[block * kColumns + c] = scale;
    to.correction.data_ptr<int32_t>()[block * kColumns + c] = -128 * sum;
  }
}

low_bit::Weight8 weight8(const LowBitWeight& w, const float* bias) {
  return {w.data.const_data_ptr<int8_t>(),
          w.scale.const_data_ptr<float>(),
          w.correction.const_data_ptr<int32_t>(),
          bias,
          w.data.size(1),
          w.out};
}

low_bit::Weight4 weight4(const LowBitWeight& w, const float* bias) {
  return {w.data.const_data_ptr<uint8_t>(),
          w.multiple.const_data_ptr<int8_t>(),
          w.scale.const_data_ptr<float>(),
          w.correction.const_data_ptr<int32_t>(),
          bias,
          2 * w.data.size(1),
          w.group / 4,
          w.out};
}

low_bit::SteppedWeight stepped_weight(const LowBitWeight& w, const float* bias) {
  static constexpr uint8_t plain[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return {w.data.const_data_ptr<uint8_t>(),
          w.table.defined() ? w.table.const_data_ptr<uint8_t>() : plain,
          reinterpret_cast<const uint16_t*>(w.multiple.const_data_ptr<at::Half>()),
          w.scale.const_data_ptr<float>(),
          bias,
          2 * w.data.size(1),
          w.group / 4,
          w.out};
}

template <class T>
void panel_of_4(const low_bit::Rows& x, const low_bit::Weight4& w, int64_t first, int64_t last, T* y) {
  thread_local std::vector<int8_t> data;
  data.resize((last - first) * w.quads * 4 * kColumns);
  low_bit::widen4(w, first, last, data.data());
  // The pointer is set back so that the blocks keep their numbers.
  const int8_t* const all = data.data() - first * w.quads * 4 * kColumns;
  low_bit::panel8(x, {all, w.scale, w.correction, w.bias, w.quads, w.n}, first, last, y);
}

int64_t quads_of(const LowBitWeight& w) {
  return w.data.size(1) * (w.group ? 2 : 1);
}

// How a product is cut into tasks of `width` blocks by `height` rows. Few rows take about 256 KiB of weights,
// more take panels of weights that stay in the second-level cache, cut along the rows too so that narrow
// products use every core.
struct Cut {
  int64_t width, height, across, down;

  Cut(const LowBitWeight& w, int64_t m) {
    const int64_t blocks = w.data.size(0), quads = quads_of(w);
    const bool few = m <= low_bit::max_rows;
    width = few ? std::max<int64_t>(4, 4096 / w.data.size(1) / 4 * 4)
                : std::max<int64_t>(3, 8192 / quads / 3 * 3);
    across = (blocks + width - 1) / width;
    height = few || across >= 16 ? m : std::max<int64_t>(64, rounded_up(m / 4, 8));
    down = (m + height - 1) / height;
  }
};

// The blocks [first, last) of a product of few or many rows.
template <class T>
void run_blocks(const low_bit::Rows& x, const LowBitWeight& w, const float* bias, int64_t first, int64_t last,
                T* y) {
  if (w.group && x.m <= low_bit::max_rows)
    low_bit::few4(x, weight4(w, bias), first, last, y);
  else if (w.group)
    panel_of_4(x, weight4(w, bias), first, last, y);
  else if (x.m <= low_bit::max_rows)
    low_bit::few8(x, weight8(w, bias), first, last, y);
  else
    low_bit::panel8(x, weight8(w, bias), first, last, y);
}

// Rows as the kernels of stepped weights take them: signed bytes, and their sums over the groups of every
// size that there is.
class SignedBytes {
 public:
  SignedBytes(const at::Tensor& unsigned_bytes, const at::Tensor& scale,
              std::span<const LowBitFactor> factors)
      : bytes_(unsigned_bytes), scale_(scale) {
    for (const auto& [weight, bias] : factors)
      if (weight->is_stepped()) add(weight->group);
  }

  // The rows from `row` on, for a weight with groups of this size.
  low_bit::SignedRows rows(int64_t group, int64_t row, int64_t count) const {
    const at::Tensor& sums = sums_.at(group);
    return {signed_.const_data_ptr<int8_t>() + row * signed_.size(1),
            scale_.const_data_ptr<float>() + row,
            sums.const_data_ptr<float>() + row * sums.size(1),
            count,
            signed_.size(1),
            sums.size(1)};
  }

 private:
  void add(int64_t group) {
    if (sums_.contains(group)) return;
    const int64_t m = bytes_.size(0), stride = bytes_.size(1), groups = stride / group;
    if (!signed_.defined()) {
      signed_ = at::empty({m, stride}, at::kChar);
      const uint8_t* const from = bytes_.const_data_ptr<uint8_t>();
      int8_t* const to = signed_.data_ptr<int8_t>();
      at::parallel_for(0, m * stride, 1 << 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = static_cast<int8_t>(from[i] ^ 128);
      });
    }
    at::Tensor& sums = sums_[group] = at::empty({m, groups}, at::kFloat);
    const int8_t* const from = signed_.const_data_ptr<int8_t>();
    float* const to = sums.data_ptr<float>();
    at::parallel_for(0, m, std::max<int64_t>(1, (1 << 16) / stride), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t g = 0; g < groups; ++g) {
          const int8_t* const own = from + r * stride + g * group;
          int32_t sum = 0;
          for (int64_t i = 0; i < group; ++i) sum += own[i];
          to[r * groups + g] = static_cast<float>(sum);
        }
    });
  }

  const at::Tensor bytes_, scale_;
  at::Tensor signed_;
  std::map<int64_t, at::Tensor> sums_;
};

template <class T>
void run_steps(const low_bit::SignedRows& x, const LowBitWeight& w, const float* bias, int64_t first,
               int64_t last, T* y) {
  const low_bit::SteppedWeight weight = stepped_weight(w, bias);
  if (x.m <= low_bit::max_rows)
    low_bit::few_steps(x, weight, first, last, y);
  else
    low_bit::panel_steps(x, weight, first, last, y);
}

}  // namespace

LowBitWeight quantise_weight(const at::Tensor& weight, int64_t group) {
  return quantise_rows(weight.size(0), weight.size(1), group, [&](int64_t first, int64_t count) {
    return weight.narrow(0, first, count).to(at::kFloat);
  });
}

LowBitWeight quantise_rows(int64_t out, int64_t in, int64_t group,
                           const std::function<at::Tensor(int64_t first, int64_t count)>& read) {
  check(group == 0 || group == 32 || group == 64, "4-bit weights: expected groups of 32 or 64, got ", group);
  const int64_t blocks = rounded_up(out, kColumns) / kColumns;
  check(in <= kMostInputs, "weights of 8 and 4 bits: expected at most ", kMostInputs, " inputs, got ", in);
  LowBitWeight to{out, in, group, {}, {}, {}, {}};
  to.scale = at::empty({blocks * kColumns}, at::kFloat);
  to.correction = at::empty({blocks * kColumns}, at::kInt);
  if (group == 0) {
    to.data = at::empty({blocks, rounded_up(in, 4) / 4, kColumns, 4}, at::kChar);
  } else {
    const int64_t groups = rounded_up(in, group) / group;
    to.data = at::zeros({blocks, groups * group / 8, kColumns, 4}, at::kByte);
    to.multiple = at::empty({blocks, groups, kColumns}, at::kChar);
  }
  parallel_tasks(blocks, [&](int64_t block) {
    const int64_t first = block * kColumns, real = std::min(kColumns, out - first);
    const at::Tensor rows = read(first, real).contiguous();
    check(rows.isfinite().all().item<bool>(), "a weight that is not finite cannot be quantised");
    (group ? quantise4 : quantise8)(rows.const_data_ptr<float>(), in, real, block, to);
  });
  return to;
}

LowBitWeight keep_few_bits(int64_t out, int64_t in, const FewBits& from) {
  return from.steps ? pack_steps(out, in, from) : quantise_rows(out, in, 0, from.rows);
}

at::Tensor LowBitWeight::dequantised() const {
  if (is_stepped()) return read_steps(*this);
  const auto by_row = [&](const at::Tensor& steps) {  // [blocks, quads, 16, 4] -> [16 * blocks, 4 * quads]
    return steps.permute({0, 2, 1, 3}).reshape({16 * steps.size(0), -1}).to(at::kFloat);
  };
  const auto scaled = [&](const at::Tensor& whole) {
    return (whole * scale.unsqueeze(1)).narrow(0, 0, out).narrow(1, 0, in).contiguous();
  };
  if (!group) return scaled(by_row(data));
  const at::Tensor bytes = data.to(at::kInt);
  const auto half = [](const at::Tensor& nibble) { return at::where(nibble > 7, nibble - 16, nibble); };
  const at::Tensor quads = at::stack({half(bytes.bitwise_and(15)), half(bytes.bitwise_right_shift(4))}, 2);
  const at::Tensor steps = by_row(quads.flatten(1, 2));
  const at::Tensor multiples = multiple.permute({0, 2, 1}).reshape({steps.size(0), -1});
  return scaled(steps * multiples.repeat_interleave(group, 1));
}

std::vector<at::Tensor> low_bit_products(const at::Tensor& x, std::span<const LowBitFactor> factors) {
  const int64_t m = x.size(0), in = x.size(1);
  const at::Tensor rows = x.contiguous();
  std::vector<at::Tensor> out, biases;
  int64_t padded = 0;
  for (const auto& [weight, bias] : factors) {
    out.push_back(at::empty({m, weight->out}, x.options()));
    biases.push_back(bias.defined() ? bias.to(at::kFloat).contiguous() : bias);
    padded = std::max(padded, 4 * quads_of(*weight));
  }
  if (m == 0) return out;
  // Rows of equal distance modulo a page would fight for the same lines of the cache.
  const int64_t stride = rounded_up(padded, 64) + 64;
  at::Tensor bytes = at::empty({m, stride}, at::kByte), scale = at::empty({m}, at::kFloat);
  std::vector<Cut> cuts;
  std::vector<int64_t> counts;
  for (const auto& [weight, bias] : factors) {
    cuts.emplace_back(*weight, m);
    counts.push_back(cuts.back().across * cuts.back().down);
  }
  with_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    uint8_t* const u = bytes.data_ptr<uint8_t>();
    float* const scales = scale.data_ptr<float>();
    at::parallel_for(0, m, std::max<int64_t>(1, 65536 / padded), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        scales[r] = low_bit::quantise(element_data<T>(rows) + r * in, in, u + r * stride, padded);
    });
    const SignedBytes steps(bytes, scale, factors);
    parallel_tasks_of(counts, [&](size_t i, int64_t task) {
      const LowBitWeight& weight = *factors[i].weight;
      const Cut& cut = cuts[i];
      const int64_t first = task / cut.down * cut.width, row = task % cut.down * cut.height;
      const int64_t last = std::min(first + cut.width, weight.data.size(0)),
                    height = std::min(cut.height, m - row);
      const float* const bias = biases[i].defined() ? biases[i].const_data_ptr<float>() : nullptr;
      T* const y = element_data<T>(out[i]) + row * weight.out;
      if (weight.is_stepped())
        run_steps(steps.rows(weight.group, row, height), weight, bias, first, last, y);
      else
        run_blocks({u + row * stride, scales + row, height, stride}, weight, bias, first, last, y);
    });
  });
  return out;
}

}  // namespace glimpse
