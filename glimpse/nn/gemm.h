#pragma once

#include <cstdint>

/// Many-row product of bf16 matrices, summed in float32. It multiplies float32 or, with `pairs`, pairs of
/// bf16 by the CPU's dot products of them. Blocked as in Goto and van de Geijn, "Anatomy of high-performance
/// matrix multiplication" (2008): x is packed once, panels of w are widened (or, in pairs, copied) into the
/// cache and reused for every row.
namespace glimpse::gemm {

using bf16 = uint16_t;

/// Whether this CPU can multiply pairs. (CPUs of the lesser instruction sets do it in float32.)
bool has_pairs();

/// Rows per packed block, and floats of the packed form of x [m, k].
int64_t block_rows();
int64_t packed_size(int64_t m, int64_t k, bool pairs);

/// Columns of a panel and steps (floats or pairs) of its blocks: a tile's operands stay in the first-level
/// cache, a panel's weights and sums in the second-level one.
inline constexpr int64_t panel_columns = 240, panel_depth = 192;
/// Rows whose sums of a panel, beside its weights, fit the second-level cache.
inline constexpr int64_t panel_rows = 544;
/// Floats of scratch memory that panel() needs for `rows` rows.
int64_t scratch_size(int64_t rows);

/// Packs the blocks [first, last) of x [m, k].
void pack(const bf16* x, int64_t m, int64_t k, int64_t first, int64_t last, bool pairs, float* packed);

/// y[r, c] = x[r, :] . w[c, :] + bias[c] for the rows of the blocks [first, last) and begin <= c < end, where
/// end - begin <= panel_columns; y has n columns, `bias` may be null.
void panel(const float* packed, int64_t m, int64_t k, int64_t first, int64_t last, const bf16* w,
           const float* bias, int64_t begin, int64_t end, int64_t n, bool pairs, bf16* y, float* scratch);

}  // namespace glimpse::gemm
