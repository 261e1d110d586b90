#include "glimpse/models/qwen_vit.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

VitWindows vit_windows(const std::vector<Grid>& grids, int64_t merge, int64_t window_tokens) {
  VitWindows windows;
  std::vector<int64_t> order;
  for (const Grid& grid : grids) {
    const int64_t rows = grid.h / merge, cols = grid.w / merge;
    const int64_t side = window_tokens > 0 ? window_tokens : std::max<int64_t>({rows, cols, 1});
    for (int64_t t = 0; t < grid.t; ++t) {
      const int64_t first = static_cast<int64_t>(order.size());
      for (int64_t top = 0; top < rows; top += side)
        for (int64_t left = 0; left < cols; left += side) {
          const int64_t bottom = std::min(top + side, rows), right = std::min(left + side, cols);
          for (int64_t r = top; r < bottom; ++r)
            for (int64_t c = left; c < right; ++c) order.push_back(first + r * cols + c);
          windows.window_lengths.push_back((bottom - top) * (right - left));
        }
      windows.frame_lengths.push_back(rows * cols);
    }
  }
  windows.index = at::tensor(order, at::kLong);
  return windows;
}

VitWindows VitWindows::at(const std::vector<int64_t>& positions) const {
  const auto left_of = [&](const std::vector<int64_t>& lengths) {
    std::vector<int64_t> left;
    auto next = positions.begin();
    int64_t end = 0;
    for (const int64_t length : lengths) {
      const auto first = next;
      next = std::lower_bound(first, positions.end(), end += length);
      if (next != first) left.push_back(next - first);
    }
    return left;
  };
  return {index.index_select(0, at::tensor(positions, at::kLong)), left_of(window_lengths),
          left_of(frame_lengths)};
}

PatchPlaces patch_places(const std::vector<Grid>& grids, int64_t merge) {
  std::vector<int64_t> rows, cols;
  for (const Grid& grid : grids)
    for (int64_t t = 0; t < grid.t; ++t)
      for (int64_t r = 0; r < grid.h; r += merge)
        for (int64_t c = 0; c < grid.w; c += merge)
          for (int64_t i = 0; i < merge; ++i)
            for (int64_t j = 0; j < merge; ++j) {
              rows.push_back(r + i);
              cols.push_back(c + j);
            }
  return {at::tensor(rows, at::kLong), at::tensor(cols, at::kLong)};
}

QwenVitPass::QwenVitPass(const QwenVitShape& shape, const Linear& patch_embed,
                         const std::vector<Patches>& images, const VisionTaps& taps)
    : shape_(shape), patch_embed_(patch_embed), taps_(taps), tapped_(tapped_blocks(taps, shape.depth)) {
  for (const Patches& image : images) {
    check(image.pixel_values.size(1) == patch_embed.weight.size(1), "pixel values: a patch has ",
          image.pixel_values.size(1), " values, expected ", patch_embed.weight.size(1));
    pictures_.push_back(image);
    grids_.push_back(image.grid);
  }
  out_.states.resize(taps.states.size());
  out_.attention.resize(taps.attention.size());
}

void QwenVitPass::keep(const std::vector<int64_t>& tokens) {
  std::vector<int64_t> positions;
  const int64_t* token = windows_.index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < windows_.index.numel(); ++i)
    if (std::binary_search(tokens.begin(), tokens.end(), token[i])) positions.push_back(i);
  const at::Tensor stay = index_tensor(positions, x_.device());
  x_ = units_of(x_, stay);
  tables_ = {units_of(tables_.cos, stay), units_of(tables_.sin, stay)};
  enter(windows_.at(positions));
}

void QwenVitPass::step() {
  if (next_ == 0) embed();
  run(next_);
  for (size_t tap = 0; tap < taps_.states.size(); ++tap)
    if (taps_.states[tap] == next_) out_.states[tap] = to_tokens(x_);
  ++next_;
}

// Merge units move as a whole; their patches stay together.
at::Tensor QwenVitPass::units_of(const at::Tensor& t, const at::Tensor& index) const {
  return t.view({-1, unit(), t.size(1)}).index_select(0, index).view({-1, t.size(1)});
}

// Tokens in window order -> row-major, zero where there is none any more.
at::Tensor QwenVitPass::placed(const at::Tensor& t) const {
  return at::zeros({std::ssize(out_.windows), t.size(1)}, t.options()).index_copy_(0, order_, t);
}

// Patches in window order -> their merge units' means, row-major.
at::Tensor QwenVitPass::to_tokens(const at::Tensor& t) const {
  return placed(t.view({-1, unit(), t.size(1)}).mean(1));
}

// From here on these are the tokens.
void QwenVitPass::enter(VitWindows windows) {
  windows_ = std::move(windows);
  order_ = to_device(windows_.index, patch_embed_.weight.device());
  groups_.clear();
  auto window = windows_.window_lengths.begin();
  int64_t row = 0;
  for (const int64_t tokens : windows_.frame_lengths) {
    if (groups_.empty() || groups_.back().rows >= 2 * block_rows()) groups_.push_back({row, 0, {}, {}});
    RowGroup& group = groups_.back();
    group.frames.lengths.push_back(tokens * unit());
    for (int64_t left = tokens; left > 0; left -= *window++)
      group.windows.lengths.push_back(*window * unit());
    group.rows += tokens * unit();
    row += tokens * unit();
  }
}

void QwenVitPass::embed() {
  const at::TensorOptions options = patch_embed_.weight.options();
  enter(vit_windows(grids_, shape_.merge, shape_.window_tokens));
  x_ = at::empty({windows_.index.size(0) * unit(), shape_.hidden}, options);
  int64_t row = 0;
  for (size_t image = 0; image < pictures_.size(); ++image) {
    const Patches picture = std::exchange(pictures_[image], {});
    const int64_t patches = picture.pixel_values.size(0);
    for_each_block(patches, block_rows(), [&](int64_t first, int64_t count) {
      at::Tensor rows = x_.narrow(0, row + first, count);
      rows.copy_(patch_embed_(picture.values(first, count).to(options)));
      add_positions(grids_[image], first, rows);
    });
    row += patches;
  }
  x_ = units_of(x_, order_);
  const Rope tables = rope();
  tables_ = {units_of(to_device(tables.cos, options.device()), order_),
             units_of(to_device(tables.sin, options.device()), order_)};
  const int64_t* token = windows_.index.const_data_ptr<int64_t>();
  out_.windows.resize(windows_.index.numel());
  for (size_t w = 0; w < windows_.window_lengths.size(); ++w)
    for (int64_t i = 0; i < windows_.window_lengths[w]; ++i) out_.windows[*token++] = static_cast<int64_t>(w);
}

// Angles of every patch in merge-unit order: half of the pairs turn with the row, half with the column.
Rope QwenVitPass::rope() const {
  const PatchPlaces places = patch_places(grids_, shape_.merge);
  const at::Tensor frequencies = inverse_frequencies(shape_.hidden / shape_.heads / 2, 10000.0);
  return rope_from_angles(at::cat({at::outer(places.rows.to(at::kFloat), frequencies),
                                   at::outer(places.cols.to(at::kFloat), frequencies)},
                                  1));
}

Rope QwenVitPass::rope_of(const RowGroup& group) const {
  return {tables_.cos.narrow(0, group.first, group.rows), tables_.sin.narrow(0, group.first, group.rows)};
}

at::Tensor QwenVitPass::attend(at::Tensor (&parts)[3], const RowGroup& group, bool windows) {
  const auto turned = [&](const at::Tensor& part) { return apply_rope(part, rope_of(group)); };
  at::Tensor q = turned(parts[0]), k = turned(parts[1]);
  at::Tensor mixed = segment_attention(q, k, parts[2], windows ? group.windows : group.frames);
  parts[2].reset();
  if (std::find(tapped_.begin(), tapped_.end(), next_) != tapped_.end()) record(q, k, group);
  return mixed;
}

// Notes the attention that is asked of this block. Queries and keys are not needed any more.
void QwenVitPass::record(at::Tensor q, at::Tensor k, const RowGroup& group) {
  keys_.push_back(k.to(at::kFloat).mean(1));
  received_.resize(tapped_.size());
  bool rotated_twice = false;
  for (const bool twice : {false, true})
    for (size_t tap = 0; tap < tapped_.size(); ++tap) {
      if (tapped_[tap] != next_ || taps_.attention[tap].rotate_twice != twice) continue;
      if (twice && !rotated_twice) {
        q = apply_rope(q, rope_of(group));
        k = apply_rope(k, rope_of(group));
        rotated_twice = true;
      }
      received_[tap].push_back(received_attention(q, k, group.frames.lengths));
    }
}

// Puts what was recorded of all groups together.
void QwenVitPass::note_records() {
  if (keys_.empty()) return;
  const at::Tensor keys = to_tokens(at::cat(keys_));
  for (size_t tap = 0; tap < received_.size(); ++tap)
    if (!received_[tap].empty())
      out_.attention[tap] = {to_tokens(at::cat(received_[tap]).unsqueeze(1)).squeeze(1), keys};
  keys_.clear();
  received_.clear();
}

}  // namespace glimpse
