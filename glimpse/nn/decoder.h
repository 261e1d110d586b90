#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/io/checkpoint.h"
#include "glimpse/nn/cuda_ops.h"
#include "glimpse/nn/kv_cache.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/rotary.h"

namespace glimpse {

/// Shape of a decoder-only language model (Qwen2, LLaMA).
struct DecoderConfig {
  int64_t hidden_size = 0, intermediate_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0,
          vocab_size = 0;
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;        ///< q, k and v projections have a bias
  bool tied_head = false;             ///< lm_head is the embedding matrix
  std::vector<int64_t> windows = {};  ///< of each layer how many rows one sees, itself the last; 0: all.
                                      ///< Empty: all everywhere. Rows that were pruned are not among them

  int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows[layer]; }
};

/// Attention that is asked for: the scaled logits [H, keys] float32 of one of a sequence's rows over the keys
/// that it sees, or over those of the rows behind it too.
struct AttentionTap {
  int64_t row = 0;
  at::Tensor* logits = nullptr;
  bool all_keys = false;
};

/// New rows of one sequence in a ragged batch.
struct SequenceRows {
  KvCache* cache = nullptr;
  int64_t count = 0;  ///< rows of the batch that belong to this sequence
  std::vector<AttentionTap> taps = {};
  int64_t apart = 0;  ///< of them, at the end: each sees the rows before all of these and itself. They leave
                      ///< nothing in the cache
  int64_t more = 0;   ///< rows that will follow in this layer: its cache makes room for them
};

/// A ragged batch: the rows of all sequences one after the other.
struct RaggedBatch {
  std::vector<SequenceRows> sequences;
  Rope rope;                                    ///< tables of every row
  std::optional<cuda::DecodeTable> table = {};  ///< of a decoding step whose caches have made room already
  at::Tensor asked = {};                        ///< [n] int64: the layer gives these rows alone; else all
};

/// What a family's blocks do to queries and keys [R, H, d] before the rotary embedding (Qwen3: norms).
using HeadStep = std::function<void(at::Tensor& q, at::Tensor& k)>;
/// Makes it for the block whose weights' names begin with `block`.
using MakeHeadStep =
    std::function<HeadStep(const Weights& weights, const std::string& block, at::TensorOptions options)>;

/// The decoder's weights and its forward pass, layer by layer: linear layers see the rows of all sequences
/// together, attention runs per sequence, so sequences of different and differently pruned lengths need no
/// padding.
class Decoder {
 public:
  /// Takes `prefix`embed_tokens..., `prefix`layers.N..., `prefix`norm and `head` (a linear layer's name) from
  /// `weights`. A head beside layers of 4 bits has 8.
  static Decoder load(const DecoderConfig& config, const Weights& weights, const std::string& prefix,
                      const std::string& head, at::TensorOptions options, const WeightOptions& how = {},
                      const MakeHeadStep& head_step = {});

  const DecoderConfig& config() const { return config_; }
  /// Calls visit(module, layer) for every linear layer of the blocks by its module name in the checkpoint
  /// ("model.layers.0.self_attn.q_proj"), in order; lm_head is not among them.
  void visit_linears(const std::function<void(const std::string& module, Linear& layer)>& visit);
  void visit_linears(const std::function<void(const std::string& module, const Linear& layer)>& visit) const;
  at::TensorOptions options() const { return options_; }
  /// ids [T] int64 -> [T, D].
  at::Tensor embed(const at::Tensor& ids) const;
  /// Runs layer l on x [R, D]: appends every sequence's keys and values to its cache, returns the layer's
  /// output (without gradients and for all rows in x's memory). nn/forward.h runs them one after the other.
  at::Tensor layer(int64_t l, at::Tensor x, const RaggedBatch& batch) const;
  /// How layer l would let the last of x's rows [T, D] attend to all of them: softmax, mean over heads, [T]
  /// float32. Without `rope`, neither query nor keys are rotated.
  at::Tensor last_row_attention(int64_t l, const at::Tensor& x, const Rope* rope) const;
  /// Final norm and head: x [n, D] -> logits [n, V], float32.
  at::Tensor logits(const at::Tensor& x) const;

 private:
  struct Layer {
    at::Tensor input_layernorm, post_attention_layernorm;
    Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
    HeadStep head_step;
  };
  at::Tensor attend(int64_t l, const at::Tensor& n, const RaggedBatch& batch) const;
  template <class Self, class Visit>
  static void visit_linears_of(Self& self, const Visit& visit);

  DecoderConfig config_;
  std::string prefix_;
  at::TensorOptions options_;
  at::Tensor embed_tokens_;  // undefined where `embedding_` reads it row by row
  std::optional<FewBits> embedding_;
  at::Tensor norm_;
  std::vector<Layer> layers_;
  Linear lm_head_;
};

}  // namespace glimpse
