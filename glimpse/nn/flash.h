#pragma once

#include <cstdint>

/// Attention in blocks of keys with a running softmax (Dao et al., "FlashAttention", 2022), so that memory
/// grows with the rows and not with rows x keys. bf16 or float32 operands, float32 sums. Compiled for
/// every instruction set like nn/kernels.h; runs on the calling thread.
namespace glimpse::flash {

using bf16 = uint16_t;

/// The query heads that share one key head, over consecutive rows. Strides count elements; the last dimension
/// is packed.
template <class T>
struct Heads {
  const T *q, *k, *v;
  int64_t rows, keys;         ///< of q, and of k and v
  int64_t group;              ///< query heads
  int64_t d, dv;              ///< width of queries and keys, and of values
  int64_t q_row, q_head;      ///< strides of q
  int64_t k_row, v_row;       ///< strides of k and v
  int64_t out_row, out_head;  ///< strides of the result
  bool causal;                ///< row i sees the first keys - rows + i + 1 keys; else all
  bool pairs = false;  ///< bf16 products in pairs, where gemm::has_pairs() (nn/gemm.h); the softmax's weights
                       ///< are rounded to bf16 too
  int64_t window = 0;  ///< of a causal row's keys it sees the last so many; 0: all
};

/// Rows that one call of attend() should take when `group` heads share a key head.
int64_t block_rows(int64_t group);
/// Floats of scratch memory that attend() needs for `rows` rows.
int64_t scratch_size(int64_t rows, int64_t group, int64_t d, int64_t dv);

/// out = softmax(q k^T / sqrt(d)) v for the rows [first, last). Every row's result is the same whichever rows
/// it is computed with.
void attend(const Heads<bf16>& heads, int64_t first, int64_t last, bf16* out, float* scratch);
void attend(const Heads<float>& heads, int64_t first, int64_t last, float* out, float* scratch);

/// The instruction set in use.
const char* target_name();

}  // namespace glimpse::flash
