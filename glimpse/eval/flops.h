#pragma once

#include <vector>

#include "glimpse/models/vision_shape.h"
#include "glimpse/models/vlm.h"
#include "glimpse/nn/decoder.h"
#include "glimpse/prune/vip.h"

/// Arithmetic and memory traffic, by formula: docs/flops.md has all of them. A multiply-add is two
/// operations. Norms, rotations, activations and softmax are left out: together they are below 1 % at the
/// published sizes.
namespace glimpse {

/// x [rows, in] times a weight [out, in].
inline double linear_flops(double rows, double in, double out) {
  return 2.0 * rows * in * out;
}
/// q k^T and p v inside segments of these lengths; `width` is heads * head size.
double segment_flops(const std::vector<int64_t>& lengths, double width);
/// One encoder block without its attention: qkv, proj and the MLP.
double vision_linears_flops(const VisionShape& v, double rows);
/// Patch embedding, blocks (attention inside windows or, in full blocks, inside frames) and projector.
double vision_flops(const VisionShape& v, const Grid& grid);
/// What is saved of it on an image of `tokens` visual tokens if after a block only `share` of them are left,
/// in whole windows.
double vision_flops_saved(const VisionShape& v, int64_t tokens, int64_t block, double share);

/// A text encoder on a text of which it runs `rows` rows and projects one; causal attention.
double text_flops(const TextTower& tower, double rows);

/// Numbers in the linear weights of one decoder layer.
double layer_weights(const DecoderConfig& c);
/// Layer `l` on the `rows` first rows of a sequence; causal attention has rows (rows + 1) / 2 pairs, fewer
/// with a window.
double layer_flops(const DecoderConfig& c, int64_t l, double rows);
double head_flops(const DecoderConfig& c);
/// Language model on `rows` embedded rows, logits of the last one.
double prefill_flops(const DecoderConfig& c, double rows);
/// One more row after a cache of `length` rows in layer `l`, the new one included.
double step_flops(const DecoderConfig& c, int64_t l, double length);
/// How one layer would let the last of `rows` rows attend to all of them: its keys, one query, the logits.
double look_ahead_flops(const DecoderConfig& c, double rows);

/// Prefill that has the guide token up to layer `cut` (included) and `left` rows after it.
double pruned_prefill_flops(const DecoderConfig& c, const VipConfig& vip, double rows, double visual,
                            double left, int64_t cut);

/// Bytes of keys and values of one row in all layers (bf16).
double kv_row_bytes(const DecoderConfig& c);

}  // namespace glimpse
