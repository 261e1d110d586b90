#include "glimpse/nn/steps.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/nn/low_bit_kernels.h"
#include "glimpse/nn/parallel.h"

namespace glimpse {

namespace {

constexpr int64_t kColumns = low_bit::block_columns;
constexpr int64_t kMostInputs = 1 << 16;  // so that sums of 255 x 127 have 32 bits
constexpr int kTop = 15;                  // float16 scales are below 2^15, so that the least have all digits
constexpr float kLargestZero = 1 << 14;   // steps further from zero are as good as none

// A row's power of two, for scales up to this.
float row_scale(float largest) {
  int exponent = 0;
  std::frexp(largest, &exponent);
  return exponent < -100 ? 0 : std::ldexp(1.0f, exponent - kTop);
}

// Scale and zero of a group; one whose steps make no difference becomes steps of `least`.
struct Group {
  float scale, zero;
  bool is_flat;
};
Group group_of(float scale, float offset, float least) {
  const float zero = offset / scale;
  if (scale != 0 && std::abs(zero) <= kLargestZero) return {scale, zero, false};
  return {offset, 1 - least, true};
}

}  // namespace

LowBitWeight pack_steps(int64_t out, int64_t in, const FewBits& from) {
  check(in <= kMostInputs, "weights of 8 and 4 bits: expected at most ", kMostInputs, " inputs, got ", in);
  invariant(from.group > 0 && from.group % 8 == 0, "groups of whole bytes of two quads");
  const int64_t blocks = (out + kColumns - 1) / kColumns, groups = (in + from.group - 1) / from.group;
  LowBitWeight to{out, in, from.group, {}, {}, {}, {}, from.table};
  to.data = at::zeros({blocks, groups * from.group / 8, kColumns, 4}, at::kByte);
  to.scale = at::zeros({blocks * kColumns}, at::kFloat);
  to.multiple = at::zeros({blocks, groups, 2, kColumns}, at::kHalf);
  const float least = from.table.defined() ? static_cast<float>(from.table.const_data_ptr<uint8_t>()[0]) : 0;
  parallel_tasks(blocks, [&](int64_t block) {
    const int64_t first = block * kColumns, real = std::min(kColumns, out - first);
    const Steps rows = from.steps(first, real);
    uint8_t* const data = to.data.data_ptr<uint8_t>() + block * to.data.stride(0);
    at::Half* const multiples = to.multiple.data_ptr<at::Half>() + block * to.multiple.stride(0);
    for (int64_t c = 0; c < real; ++c) {
      const uint8_t* const steps = rows.step.const_data_ptr<uint8_t>() + c * in;
      const float *const scales = rows.scale.const_data_ptr<float>() + c * groups,
                         *const offsets = rows.offset.const_data_ptr<float>() + c * groups;
      float largest = 0;
      for (int64_t g = 0; g < groups; ++g) {
        check(std::isfinite(scales[g]) && std::isfinite(offsets[g]),
              "a weight that is not finite cannot be kept in 4 bits");
        largest = std::max(largest, std::abs(group_of(scales[g], offsets[g], least).scale));
      }
      const float own = row_scale(largest);
      to.scale.data_ptr<float>()[first + c] = own;
      for (int64_t g = 0; own > 0 && g < groups; ++g) {
        const Group group = group_of(scales[g], offsets[g], least);
        multiples[2 * g * kColumns + c] = group.scale / own;
        multiples[(2 * g + 1) * kColumns + c] = group.zero;
        if (group.is_flat) continue;
        for (int64_t i = g * from.group; i < std::min(in, (g + 1) * from.group); i += 8) {
          std::array<uint8_t, 8> pair = {};  // of quads
          std::copy_n(steps + i, std::min<int64_t>(8, in - i), pair.begin());
          uint8_t* const bytes = data + (i / 8 * kColumns + c) * 4;
          for (int k = 0; k < 4; ++k)
            bytes[k] = static_cast<uint8_t>((pair[k] & 15) | (pair[k + 4] & 15) << 4);
        }
      }
    }
  });
  return to;
}

at::Tensor read_steps(const LowBitWeight& w) {
  const int64_t rows = w.data.size(0) * kColumns;
  const at::Tensor bytes = w.data.to(at::kInt);
  const at::Tensor steps = at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 2)
                               .flatten(1, 2)  // [blocks, quads, 16, 4]
                               .permute({0, 2, 1, 3})
                               .reshape({rows, -1});
  const at::Tensor values =
      w.table.defined() ? w.table.to(at::kFloat).index({steps.to(at::kLong)}) : steps.to(at::kFloat);
  const auto by_input = [&](int64_t which) {
    const at::Tensor groups = w.multiple.select(2, which).permute({0, 2, 1}).reshape({rows, -1});
    return groups.to(at::kFloat).repeat_interleave(w.group, 1);
  };
  const at::Tensor whole = (values + by_input(1)) * by_input(0) * w.scale.unsqueeze(1);
  return whole.narrow(0, 0, w.out).narrow(1, 0, w.in).contiguous();
}

}  // namespace glimpse
