#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace glimpse {

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
};

/// The type with this number. Error starting with `what` when it is not supported.
const GgufType& gguf_type(uint32_t id, const std::string& what);

/// `count` elements (whole blocks) at `data` as a tensor [count] of `dtype` (float32, bfloat16 or float16),
/// computed in float32 and rounded once, by all threads. Error starting with `what` when a scale is not
/// finite.
at::Tensor read_gguf_blocks(const GgufType& type, const uint8_t* data, int64_t count, at::ScalarType dtype,
                            const std::string& what);

}  // namespace glimpse
