#include "glimpse/eval/flops.h"

#include <algorithm>

namespace glimpse {

double segment_flops(const std::vector<int64_t>& lengths, double width) {
  double pairs = 0;
  for (const int64_t n : lengths) pairs += static_cast<double>(n) * static_cast<double>(n);
  return 4.0 * width * pairs;
}

double vision_linears_flops(const VisionShape& v, double rows) {
  return linear_flops(rows, v.hidden, 4 * v.hidden) +
         static_cast<double>(v.mlp_matrices) * linear_flops(rows, v.hidden, v.intermediate);
}

double vision_flops(const VisionShape& v, const Grid& grid) {
  const int64_t unit = v.merge * v.merge, patches = int64_t{grid.t} * grid.h * grid.w;
  const double rows = static_cast<double>(patches + grid.t * v.extra_tokens);
  const int64_t full = std::ssize(v.full_blocks);
  double attention = static_cast<double>(full) *
                     segment_flops(std::vector<int64_t>(grid.t, patches / grid.t + v.extra_tokens), v.hidden);
  if (v.window_tokens > 0)
    attention +=
        static_cast<double>((v.depth - full) * unit * unit) * segment_flops(v.windows(grid), v.hidden);
  return linear_flops(patches, v.patch_values, v.hidden) + v.depth * vision_linears_flops(v, rows) +
         attention + 2.0 * static_cast<double>(patches / unit) * v.projector;
}

double vision_flops_saved(const VisionShape& v, int64_t tokens, int64_t block, double share) {
  const double patches = static_cast<double>(tokens * v.merge * v.merge), gone = patches * (1 - share),
               window = static_cast<double>(v.window_tokens * v.window_tokens * v.merge * v.merge);
  const auto full = static_cast<double>(
      std::count_if(v.full_blocks.begin(), v.full_blocks.end(), [&](int64_t each) { return each > block; }));
  const auto blocks = static_cast<double>(v.depth - 1 - block), width = static_cast<double>(v.hidden);
  return blocks * vision_linears_flops(v, gone) + full * 4 * patches * patches * (1 - share * share) * width +
         (blocks - full) * 4 * gone * window * width +
         2 * static_cast<double>(tokens) * (1 - share) * v.projector;
}

double text_flops(const TextTower& t, double rows) {
  const double d = t.hidden_size;
  const double layer = linear_flops(rows, d, 4 * d) + 2 * linear_flops(rows, d, t.intermediate_size) +
                       2 * d * rows * (rows + 1);
  return t.layers * layer + linear_flops(1, d, t.width);
}

double layer_weights(const DecoderConfig& c) {
  const double q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return c.hidden_size * (2 * q + 2 * kv + 3.0 * c.intermediate_size);
}

double layer_flops(const DecoderConfig& c, int64_t l, double rows) {
  const auto window = static_cast<double>(c.window(l));
  const double unseen = window > 0 ? std::max(rows - window, 0.0) : 0;  // by the last row
  const double pairs = (rows * (rows + 1) - unseen * (unseen + 1)) / 2;
  return 2 * rows * layer_weights(c) + 4.0 * c.heads * c.head_dim * pairs;
}

double head_flops(const DecoderConfig& c) {
  return linear_flops(1, c.hidden_size, c.vocab_size);
}

double prefill_flops(const DecoderConfig& c, double rows) {
  double sum = head_flops(c);
  for (int64_t l = 0; l < c.layers; ++l) sum += layer_flops(c, l, rows);
  return sum;
}

double step_flops(const DecoderConfig& c, int64_t l, double length) {
  const auto window = static_cast<double>(c.window(l));
  return 2 * layer_weights(c) + 4.0 * c.heads * c.head_dim * (window > 0 ? std::min(length, window) : length);
}

double look_ahead_flops(const DecoderConfig& c, double rows) {
  const double q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return linear_flops(rows, c.hidden_size, kv) + linear_flops(1, c.hidden_size, q) + 2 * q * rows;
}

double pruned_prefill_flops(const DecoderConfig& c, const VipConfig& vip, double rows, double visual,
                            double left, int64_t cut) {
  double sum = vip.operations(visual) + head_flops(c);
  for (int64_t l = 0; l < c.layers; ++l) sum += layer_flops(c, l, l <= cut ? rows + 1 : left);
  return sum;
}

double kv_row_bytes(const DecoderConfig& c) {
  return 2.0 * 2 * c.layers * c.kv_heads * c.head_dim;
}

}  // namespace glimpse
