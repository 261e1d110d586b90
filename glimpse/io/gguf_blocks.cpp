#include "glimpse/io/gguf_blocks.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

constexpr int64_t kMaxBlock = 256;  // values of the largest block

// A little-endian float16 at `bytes`.
float half(const uint8_t* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

// The 4 bits of value i of 32 in 16 bytes, whose low halves are the first 16 values.
int half_byte(const uint8_t* bytes, int i) {
  return bytes[i % 16] >> i / 16 * 4 & 15;
}

// Each block below says how its bytes lie.

// Q8_0, 32 values: scale f16, 32 signed bytes.
bool read_q8_0(const uint8_t* block, float* values) {
  const float scale = half(block);
  for (int i = 0; i < 32; ++i) values[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  return std::isfinite(scale);
}

// scale * step + offset for whole blocks of types that have steps.
template <bool (*split)(const uint8_t*, GgufSteps&), int values_of_block, int group>
bool read_steps(const uint8_t* block, float* values) {
  GgufSteps from;
  const bool finite = split(block, from);
  for (int i = 0; i < values_of_block; ++i)
    values[i] = from.scale[i / group] * static_cast<float>(from.step[i]) + from.offset[i / group];
  return finite;
}

// Q4_0 and Q4_1, 32 values: scale f16; an offset f16 (Q4_1; without it values are half of their range too
// large); 16 bytes, whose low halves are the first 16 values.
template <bool has_offset>
bool split_q4(const uint8_t* block, GgufSteps& to) {
  const float scale = half(block);
  to.scale[0] = scale;
  to.offset[0] = has_offset ? half(block + 2) : -8 * scale;
  for (int i = 0; i < 32; ++i) to.step[i] = static_cast<uint8_t>(half_byte(block + (has_offset ? 4 : 2), i));
  return std::isfinite(to.scale[0]) && std::isfinite(to.offset[0]);
}

// Q5_0 and Q5_1: the same with 4 bytes of everybody's fifth bit before the 16.
template <bool has_offset>
bool read_q5(const uint8_t* block, float* values) {
  const float scale = half(block), offset = has_offset ? half(block + 2) : 0;
  const uint8_t* const bytes = block + (has_offset ? 4 : 2);
  uint32_t fifth = 0;
  std::memcpy(&fifth, bytes, sizeof fifth);
  constexpr int middle = has_offset ? 0 : 16;
  for (int i = 0; i < 32; ++i) {
    const int value = (half_byte(bytes + 4, i) | static_cast<int>(fifth >> i & 1) << 4) - middle;
    values[i] = scale * static_cast<float>(value) + offset;
  }
  return std::isfinite(scale) && std::isfinite(offset);
}

// What the 4 bits of IQ4_NL and IQ4_XS stand for.
constexpr int kSteps[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The values of blocks whose steps stand for something else.
template <bool (*split)(const uint8_t*, GgufSteps&), int values_of_block>
bool read_table(const uint8_t* block, float* values) {
  GgufSteps from;
  const bool finite = split(block, from);
  for (int i = 0; i < values_of_block; ++i)
    values[i] = from.scale[i / 32] * static_cast<float>(kSteps[from.step[i]]);
  return finite;
}

// IQ4_NL, 32 values: scale f16, 16 bytes; their low halves are the first 16 values.
bool split_iq4_nl(const uint8_t* block, GgufSteps& to) {
  to.scale[0] = half(block);
  to.offset[0] = -128 * to.scale[0];
  for (int i = 0; i < 32; ++i) to.step[i] = static_cast<uint8_t>(half_byte(block + 2, i));
  return std::isfinite(to.scale[0]);
}

// IQ4_XS, 256 values in groups of 32: scale f16, 2 bytes with the upper 2 bits of the groups' scales, 4 with
// the lower 4, each scale 32 too large; 16 bytes for each group, as IQ4_NL has them.
bool split_iq4_xs(const uint8_t* block, GgufSteps& to) {
  const float scale = half(block);
  for (int group = 0; group < 8; ++group) {
    const int low = block[4 + group / 2] >> group % 2 * 4 & 15,
              high = block[2 + group / 4] >> group % 4 * 2 & 3;
    to.scale[group] = scale * static_cast<float>((low | high << 4) - 32);
    to.offset[group] = -128 * to.scale[group];
    for (int i = 0; i < 32; ++i)
      to.step[32 * group + i] = static_cast<uint8_t>(half_byte(block + 8 + 16 * group, i));
  }
  return std::isfinite(scale);
}

// Q2_K and Q3_K hold two bits of each value in 64 bytes: either half of 128 values has 32 of them, whose bits
// 0-1, 2-3, 4-5 and 6-7 are its four runs of 32 values.
int two_bits(const uint8_t* bytes, int run, int i) {
  return bytes[run / 4 * 32 + i] >> run % 4 * 2 & 3;
}

// Q2_K, 256 values in groups of 16: 16 bytes, whose halves are the scale and the offset of a group; 64 bytes
// of values; scale and scale of the offsets f16.
bool split_q2_k(const uint8_t* block, GgufSteps& to) {
  const float scale = half(block + 80), offset = half(block + 82);
  for (int group = 0; group < 16; ++group) {
    to.scale[group] = scale * static_cast<float>(block[group] & 15);
    to.offset[group] = -offset * static_cast<float>(block[group] >> 4);
  }
  for (int i = 0; i < 256; ++i) to.step[i] = static_cast<uint8_t>(two_bits(block + 16, i / 32, i % 32));
  return std::isfinite(scale) && std::isfinite(offset);
}

// Q3_K, 256 values in groups of 16: 32 bytes whose bit r is the third bit of run r; 64 bytes with the other
// two; 12 bytes of scales, each 32 too large: eight whose halves are the low 4 bits of scales 0 to 7 and 8 to
// 15, four with the upper 2 of scales i, i + 4, i + 8 and i + 12; scale f16. Values are 4 too large.
bool split_q3_k(const uint8_t* block, GgufSteps& to) {
  const float scale = half(block + 108);
  const uint8_t* const scales = block + 96;
  for (int group = 0; group < 16; ++group) {
    const int low = scales[group % 8] >> group / 8 * 4 & 15,
              high = scales[8 + group % 4] >> group / 4 * 2 & 3;
    to.scale[group] = scale * static_cast<float>((low | high << 4) - 32);
    to.offset[group] = -4 * to.scale[group];
  }
  for (int i = 0; i < 256; ++i)
    to.step[i] =
        static_cast<uint8_t>(two_bits(block + 32, i / 32, i % 32) | (block[i % 32] >> i / 32 & 1) << 2);
  return std::isfinite(scale);
}

// The scale and the offset, 6 bits each, of group `i` of 8, from the 12 bytes that Q4_K and Q5_K pack them
// into: four bytes with the low bits of scales 0 to 3, four with those of offsets 0 to 3, four with the low
// halves of scale and offset 4 to 7, whose upper two bits are the upper two bits of the first eight bytes.
std::pair<int, int> scale_and_offset(const uint8_t* packed, int i) {
  if (i < 4) return {packed[i] & 63, packed[i + 4] & 63};
  const int low = packed[i + 4];
  return {(low & 15) | (packed[i - 4] >> 6 << 4), (low >> 4) | (packed[i] >> 6 << 4)};
}

// Q4_K, 256 values in groups of 32: scale and scale of the offsets f16, 12 bytes of scales and offsets, 128
// bytes; each 32 bytes hold two groups, in their low and high halves.
bool split_q4_k(const uint8_t* block, GgufSteps& to) {
  const float scale = half(block), offset = half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const auto [s, m] = scale_and_offset(block + 4, group);
    to.scale[group] = scale * static_cast<float>(s);
    to.offset[group] = -offset * static_cast<float>(m);
    const uint8_t* const bytes = block + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) to.step[32 * group + i] = bytes[i] >> group % 2 * 4 & 15;
  }
  return std::isfinite(scale) && std::isfinite(offset);
}

// Q5_K: as Q4_K, with 32 bytes before the 128 whose bit g is the fifth bit of group g.
bool read_q5_k(const uint8_t* block, float* values) {
  const float scale = half(block), offset = half(block + 2);
  const uint8_t *const fifth = block + 16, *const quarters = block + 48;
  for (int group = 0; group < 8; ++group) {
    const auto [s, m] = scale_and_offset(block + 4, group);
    const float group_scale = scale * static_cast<float>(s), group_offset = offset * static_cast<float>(m);
    const uint8_t* const bytes = quarters + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = (bytes[i] >> shift & 15) | (fifth[i] >> group & 1) << 4;
      values[32 * group + i] = group_scale * static_cast<float>(value) - group_offset;
    }
  }
  return std::isfinite(scale) && std::isfinite(offset);
}

// Q6_K, 256 values in groups of 16: 128 bytes with the low 4 bits, 64 with the upper 2, 16 signed scales,
// scale f16. Either half of 128 values has 64 and 32 of those bytes; its four runs of 32 values lie in the
// low halves of the first and second 32 bytes, then in the high halves, and in bits 0-1, 2-3, 4-5, 6-7.
bool read_q6_k(const uint8_t* block, float* values) {
  const float scale = half(block + 208);
  for (int run = 0; run < 8; ++run) {
    const int part = run / 4, quarter = run % 4;
    const uint8_t* const low = block + part * 64 + quarter % 2 * 32;
    const uint8_t* const high = block + 128 + part * 32;
    for (int i = 0; i < 32; ++i) {
      const int value = (low[i] >> quarter / 2 * 4 & 15) | (high[i] >> 2 * quarter & 3) << 4;
      const auto group_scale = static_cast<int8_t>(block[192 + run * 2 + i / 16]);
      values[32 * run + i] = scale * static_cast<float>(group_scale) * static_cast<float>(value - 32);
    }
  }
  return std::isfinite(scale);
}

constexpr GgufType kTypes[] = {
    {0, "F32", 1, 4, at::kFloat, nullptr},
    {1, "F16", 1, 2, at::kHalf, nullptr},
    {30, "BF16", 1, 2, at::kBFloat16, nullptr},
    {2, "Q4_0", 32, 18, at::kFloat, read_steps<split_q4<false>, 32, 32>, 32, split_q4<false>},
    {3, "Q4_1", 32, 20, at::kFloat, read_steps<split_q4<true>, 32, 32>, 32, split_q4<true>},
    {6, "Q5_0", 32, 22, at::kFloat, read_q5<false>},
    {7, "Q5_1", 32, 24, at::kFloat, read_q5<true>},
    {8, "Q8_0", 32, 34, at::kFloat, read_q8_0},
    {10, "Q2_K", 256, 84, at::kFloat, read_steps<split_q2_k, 256, 16>, 16, split_q2_k},
    {11, "Q3_K", 256, 110, at::kFloat, read_steps<split_q3_k, 256, 16>, 16, split_q3_k},
    {12, "Q4_K", 256, 144, at::kFloat, read_steps<split_q4_k, 256, 32>, 32, split_q4_k},
    {13, "Q5_K", 256, 176, at::kFloat, read_q5_k},
    {14, "Q6_K", 256, 210, at::kFloat, read_q6_k},
    {20, "IQ4_NL", 32, 18, at::kFloat, read_table<split_iq4_nl, 32>, 32, split_iq4_nl, true},
    {23, "IQ4_XS", 256, 136, at::kFloat, read_table<split_iq4_xs, 256>, 32, split_iq4_xs, true},
};

}  // namespace

const GgufType& gguf_type(uint32_t id, const std::string& what) {
  std::string known;
  for (const GgufType& type : kTypes) {
    if (type.id == id) return type;
    known += concat(known.empty() ? "" : ", ", type.name);
  }
  fail(what, " has the type number ", id, ", which is not supported (known: ", known, ")");
}

const at::Tensor& gguf_table() {
  static const at::Tensor table = [] {
    at::Tensor values = at::empty({16}, at::kByte);
    for (int i = 0; i < 16; ++i) values.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(kSteps[i] + 128);
    return values;
  }();
  return table;
}

at::Tensor read_gguf_blocks(const GgufType& type, const uint8_t* data, int64_t count, at::ScalarType dtype,
                            const std::string& what) {
  invariant(count % type.values == 0, "whole blocks");
  if (!type.read_block) {
    at::Tensor stored = at::empty({count}, type.dtype);
    if (count > 0) std::memcpy(stored.mutable_data_ptr(), data, stored.nbytes());
    return stored.to(dtype);
  }
  at::Tensor result = at::empty({count}, dtype);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "read_gguf_blocks", [&] {
    auto* const to = result.data_ptr<scalar_t>();
    at::parallel_for(0, count / type.values, 256, [&](int64_t first, int64_t last) {
      float values[kMaxBlock];
      for (int64_t block = first; block < last; ++block) {
        check(type.read_block(data + block * type.bytes, values), what, ": block ", block,
              " has a scale that is not a finite number");
        std::transform(values, values + type.values, to + block * type.values,
                       [](float value) { return static_cast<scalar_t>(value); });
      }
    });
  });
  return result;
}

namespace {

// `count` elements as steps, in rows of `in`.
Steps read_gguf_steps(const GgufType& type, const uint8_t* data, int64_t rows, int64_t in,
                      const std::string& what) {
  const int64_t groups = in / type.group, of_block = type.values / type.group;
  Steps to{at::empty({rows, in}, at::kByte), at::empty({rows, groups}, at::kFloat),
           at::empty({rows, groups}, at::kFloat)};
  GgufSteps block;
  for (int64_t i = 0; i < rows * in / type.values; ++i) {
    check(type.split_block(data + i * type.bytes, block), what, " has a scale that is not a finite number");
    std::copy_n(block.step.data(), type.values, to.step.data_ptr<uint8_t>() + i * type.values);
    std::copy_n(block.scale.data(), of_block, to.scale.data_ptr<float>() + i * of_block);
    std::copy_n(block.offset.data(), of_block, to.offset.data_ptr<float>() + i * of_block);
  }
  return to;
}

}  // namespace

std::optional<FewBits> gguf_few_bits(const GgufType& type, const uint8_t* data, at::IntArrayRef shape,
                                     const std::string& what, std::shared_ptr<const void> keep_alive) {
  if (!type.read_block || shape.size() != 2) return {};
  const int64_t in = shape[1], row_bytes = in / type.values * type.bytes;
  FewBits out;
  out.rows = [=, &type](int64_t first, int64_t count) {
    const auto alive = keep_alive;
    return read_gguf_blocks(type, data + first * row_bytes, count * in, at::kFloat, what).view({count, in});
  };
  if (!type.split_block) return out;
  out.group = type.group;
  if (type.has_table) out.table = gguf_table();
  out.steps = [=, &type](int64_t first, int64_t count) {
    const auto alive = keep_alive;
    return read_gguf_steps(type, data + first * row_bytes, count, in, what);
  };
  return out;
}

}  // namespace glimpse
