#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "glimpse/io/few_bits.h"

namespace glimpse {

/// A block whose values have 4 bits or fewer: steps, and scale and offset of every group of them.
struct GgufSteps {
  std::array<uint8_t, 256> step;
  std::array<float, 16> scale, offset;
};

/// A type that GGUF files store tensors in: blocks of `values` consecutive elements of a row in `bytes`
/// bytes.
struct GgufType {
  uint32_t id;
  const char* name;
  int64_t values, bytes;
  at::ScalarType dtype;  ///< of the plain types; float32, which holds them exactly, for the others
  /// Writes the values of one block, in float32. False when a scale in it is not finite. Null for plain
  /// types.
  bool (*read_block)(const uint8_t* block, float* values);
  int64_t group = 0;  ///< values that share scale and offset in `split_block`
  /// The same as steps, scale * step + offset, or scale * (gguf_table()[step] - 128). Null for types of more
  /// bits.
  bool (*split_block)(const uint8_t* block, GgufSteps& to) = nullptr;
  bool has_table = false;
};

/// What the steps of types that have a table stand for, 128 too large.
const at::Tensor& gguf_table();

/// The type with this number. Error starting with `what` when it is not supported.
const GgufType& gguf_type(uint32_t id, const std::string& what);

/// `count` elements (whole blocks) at `data` as a tensor [count] of `dtype` (float32, bfloat16 or float16),
/// computed in float32 and rounded once, by all threads. Error starting with `what` when a scale is not
/// finite.
at::Tensor read_gguf_blocks(const GgufType& type, const uint8_t* data, int64_t count, at::ScalarType dtype,
                            const std::string& what);

/// How to read a matrix [out, in] at `data` row by row, which `keep_alive` owns; nothing for plain types.
std::optional<FewBits> gguf_few_bits(const GgufType& type, const uint8_t* data, at::IntArrayRef shape,
                                     const std::string& what, std::shared_ptr<const void> keep_alive);

}  // namespace glimpse
