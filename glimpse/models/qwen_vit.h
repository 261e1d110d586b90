#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <vector>

#include "glimpse/image/patches.h"
#include "glimpse/models/vision.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/rotary.h"
#include "glimpse/nn/row_blocks.h"

namespace glimpse {

/// Order in which one of Qwen's encoders walks the merge units (one visual token each) of its images.
struct VitWindows {
  at::Tensor index;                     ///< [N] int64: row-major token of each position in window order
  std::vector<int64_t> window_lengths;  ///< tokens per window
  std::vector<int64_t> frame_lengths;   ///< tokens per frame: the segments of the full-attention blocks

  /// What is left of them where only some positions of the order stay; `positions` ascend.
  VitWindows at(const std::vector<int64_t>& positions) const;
};
/// Windows of `window_tokens` along either side; 0: a frame is one window, walked row by row.
VitWindows vit_windows(const std::vector<Grid>& grids, int64_t merge, int64_t window_tokens);

/// Rows and columns of the patches in their frames, [P] int64 each, in merge-unit order.
struct PatchPlaces {
  at::Tensor rows, cols;
};
PatchPlaces patch_places(const std::vector<Grid>& grids, int64_t merge);

/// How one of Qwen's vision encoders is built.
struct QwenVitShape {
  int64_t depth = 0, hidden = 0, heads = 1, merge = 2;
  int64_t window_tokens = 0;  ///< 0: every block attends to whole frames
};

/// One of Qwen's vision encoders between two of its blocks. What has a row per patch is what makes large
/// images large: of that there are the hidden states, and inside a block queries, keys, values and their mix.
/// Parts are copied into what stays: parts that stayed among temporary ones would leave holes in the heap.
class QwenVitPass : public Encoding {
 public:
  /// `patch_embed` must outlive it.
  QwenVitPass(const QwenVitShape& shape, const Linear& patch_embed, const std::vector<Patches>& images,
              const VisionTaps& taps);

  int64_t steps() const override { return shape_.depth - next_; }
  std::optional<int64_t> blocks_run() const override { return next_; }
  const VisionOutput& recorded() const override { return out_; }
  void keep(const std::vector<int64_t>& tokens) override;
  void step() override;
  size_t bytes() const override { return out_.bytes() + x_.nbytes() + tables_.cos.nbytes() * 2; }

 protected:
  /// Runs a block on all rows x_.
  virtual void run(int64_t block) = 0;
  /// Adds what an image's patches bring along beside their pixels to their rows [count, D], from its patch
  /// `first` on.
  virtual void add_positions(const Grid&, int64_t /*first*/, at::Tensor /*rows*/) const {}

  /// Mixed values [P, D] of the rows that `norm` gives to `qkv`, attending inside whole frames or `windows`.
  template <class Norm>
  at::Tensor attention(const Norm& norm, const Linear& qkv, bool windows = false) {
    at::Tensor all = groups_.size() == 1 ? at::Tensor() : at::empty_like(x_);
    for (const RowGroup& group : groups_) {
      at::Tensor parts[3];  // queries, keys, values
      for (at::Tensor& part : parts)
        part = at::empty({group.rows, shape_.heads, x_.size(1) / shape_.heads}, x_.options());
      for_each_block(group.rows, block_rows(), [&](int64_t first, int64_t count) {
        const at::Tensor rows = norm(x_.narrow(0, group.first + first, count));
        const at::Tensor mixed = qkv(rows).view({count, 3, shape_.heads, -1});
        for (int64_t i = 0; i < 3; ++i) parts[i].narrow(0, first, count).copy_(mixed.select(1, i));
      });
      const at::Tensor mixed = attend(parts, group, windows);
      if (all.defined())
        all.narrow(0, group.first, group.rows).copy_(mixed);
      else
        all = mixed;
    }
    note_records();
    return all;
  }
  /// What `merge(rows)` [n, out] makes of whole merge units' rows, for all tokens in their places.
  template <class Merge>
  at::Tensor merged(int64_t out, const Merge& merge) const {
    const int64_t tokens = x_.size(0) / unit();
    const at::Tensor all = at::empty({tokens, out}, x_.options());
    for_each_block(tokens, block_rows() / unit(), [&](int64_t first, int64_t count) {
      all.narrow(0, first, count).copy_(merge(x_.narrow(0, first * unit(), count * unit())));
    });
    return placed(all);
  }

  /// A copy of a `pass` whose rows are its own. All else never changes in place.
  template <class Pass>
  static std::unique_ptr<Encoding> copied(const Pass& pass) {
    auto out = std::make_unique<Pass>(pass);
    if (out->x_.defined()) out->x_ = out->x_.clone();
    return out;
  }

  // They are narrower than the language model's.
  int64_t block_rows() const { return 2 * max_block_rows(patch_embed_.weight.device()); }
  int64_t unit() const { return shape_.merge * shape_.merge; }

  at::Tensor x_;  // [P, D]: patches in window order
  VisionOutput out_;

 private:
  // Rows of whole frames, few enough for queries, keys and values of theirs to be small beside all rows.
  struct RowGroup {
    int64_t first = 0, rows = 0;
    Segments windows, frames;
  };
  at::Tensor units_of(const at::Tensor& t, const at::Tensor& index) const;
  at::Tensor placed(const at::Tensor& t) const;
  at::Tensor to_tokens(const at::Tensor& t) const;
  void enter(VitWindows windows);
  void embed();
  Rope rope() const;
  Rope rope_of(const RowGroup& group) const;
  at::Tensor attend(at::Tensor (&parts)[3], const RowGroup& group, bool windows);
  void record(at::Tensor q, at::Tensor k, const RowGroup& group);
  void note_records();

  const QwenVitShape shape_;
  const Linear& patch_embed_;
  const VisionTaps taps_;
  const std::vector<int64_t> tapped_;
  std::vector<Patches> pictures_;  // each until it is embedded
  std::vector<Grid> grids_;
  VitWindows windows_;                             // of the tokens that are left
  std::vector<RowGroup> groups_;                   // of their patches
  std::vector<at::Tensor> keys_;                   // of the block that runs, if it is tapped: of each group,
  std::vector<std::vector<at::Tensor>> received_;  // and what its tokens receive, tap by tap
  at::Tensor order_;                               // its index on the device: window order -> row-major
  Rope tables_;                                    // of x_
  int64_t next_ = 0;                               // block
};

}  // namespace glimpse
