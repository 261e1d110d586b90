#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <vector>

#include "glimpse/models/clip.h"
#include "glimpse/models/vision.h"

namespace glimpse {

/// The tokens of one segment, which come from some of the tiles that the encoder takes.
struct TilePart {
  int64_t first = 0, tiles = 1;  ///< which tiles
  /// Each token's place among those of its tiles, one tile after the other, ascending within a tile; empty:
  /// all of them as they stand.
  std::vector<int64_t> tokens;
  at::Tensor structure;  ///< see VisionOutput
};

/// CLIP on its way over tiles, a block of all per step; none sees another. A class token of a part is the
/// mean of its tiles'.
class ClipTiles : public Encoding {
 public:
  /// `tiles`: patches [tokens of a tile, values of a patch] each. `shared` brings the encoder's output into
  /// the space that it shares with texts. The encoder must outlive it.
  ClipTiles(const ClipVit& vit, const std::vector<at::Tensor>& tiles, std::vector<TilePart> parts,
            VisionTaps taps, std::function<at::Tensor(const at::Tensor&)> shared);

  int64_t steps() const override { return vit_.last_state() - passes_[0].blocks_run(); }
  void step() override;
  std::optional<int64_t> blocks_run() const override { return passes_[0].blocks_run(); }
  const VisionOutput& recorded() const override;
  void keep(const std::vector<int64_t>& tokens) override;
  std::unique_ptr<Encoding> copy() const override { return std::make_unique<ClipTiles>(*this); }
  size_t bytes() const override;
  VisionOutput finish() override;

 private:
  int64_t class_tokens() const { return taps_.class_tokens ? 1 : 0; }
  int64_t count(const TilePart& part) const;
  template <class Member>
  at::Tensor rows_of(const TilePart& part, const Member& member) const;
  std::vector<VisionOutput> outputs() const;

  const ClipVit& vit_;
  const VisionTaps taps_;
  const std::vector<TilePart> parts_;
  const std::function<at::Tensor(const at::Tensor&)> shared_;
  std::vector<ClipVit::Pass> passes_;
  mutable VisionOutput recorded_;  // made when it is asked for
};

}  // namespace glimpse
