#include "glimpse/models/clip_tiles.h"

#include "glimpse/nn/index_tensor.h"

namespace glimpse {

ClipTiles::ClipTiles(const ClipVit& vit, const std::vector<at::Tensor>& tiles, std::vector<TilePart> parts,
                     VisionTaps taps, std::function<at::Tensor(const at::Tensor&)> shared)
    : vit_(vit), taps_(std::move(taps)), parts_(std::move(parts)), shared_(std::move(shared)) {
  passes_.reserve(tiles.size());
  for (const at::Tensor& tile : tiles) passes_.emplace_back(vit_, tile, taps_);
}

void ClipTiles::step() {
  for (ClipVit::Pass& pass : passes_) pass.step();
}

const VisionOutput& ClipTiles::recorded() const {
  return recorded_ = joined(outputs(), class_tokens());
}

int64_t ClipTiles::count(const TilePart& part) const {
  return part.tokens.empty() ? part.tiles * vit_.tokens() : std::ssize(part.tokens);
}

void ClipTiles::keep(const std::vector<int64_t>& tokens) {
  std::vector<std::vector<int64_t>> own(passes_.size());
  auto next = tokens.begin();
  int64_t first = 0;
  for (const TilePart& part : parts_) {
    const int64_t end = first + count(part);
    for (; next != tokens.end() && *next < end; ++next) {
      const int64_t token = *next - first, place = part.tokens.empty() ? token : part.tokens[token];
      own[part.first + place / vit_.tokens()].push_back(place % vit_.tokens());
    }
    first = end;
  }
  for (size_t tile = 0; tile < passes_.size(); ++tile) passes_[tile].keep(own[tile]);
}

size_t ClipTiles::bytes() const {
  size_t sum = 0;
  for (const ClipVit::Pass& pass : passes_) sum += pass.bytes();
  return sum;
}

// What `member` is of the part's tiles, [tokens, ...] each with the class token's row behind them if that is
// asked for, as that of the part.
template <class Member>
at::Tensor ClipTiles::rows_of(const TilePart& part, const Member& member) const {
  std::vector<at::Tensor> tiles, last;
  for (int64_t tile = 0; tile < part.tiles; ++tile) {
    const at::Tensor rows = member(passes_[part.first + tile]);
    if (part.tiles == 1 && part.tokens.empty()) return rows;
    tiles.push_back(rows.narrow(0, 0, vit_.tokens()));
    if (taps_.class_tokens) last.push_back(rows[vit_.tokens()]);
  }
  at::Tensor out = at::cat(tiles);
  if (!part.tokens.empty()) out = out.index_select(0, index_tensor(part.tokens, out.device()));
  return last.empty() ? out : at::cat({out, at::stack(last).mean(0, true)});
}

std::vector<VisionOutput> ClipTiles::outputs() const {
  std::vector<VisionOutput> outputs;
  for (const TilePart& part : parts_) {
    VisionOutput& out = outputs.emplace_back();
    for (size_t i = 0; i < taps_.states.size(); ++i) {
      const bool there = passes_[part.first].states()[i].defined();
      out.states.push_back(there ? rows_of(part, [i](const ClipVit::Pass& pass) { return pass.states()[i]; })
                                 : at::Tensor());
    }
    for (size_t i = 0; i < taps_.attention.size(); ++i) {
      VisionAttention& attention = out.attention.emplace_back();
      if (!passes_[part.first].attention()[i].received.defined()) continue;
      attention.received =
          rows_of(part, [i](const ClipVit::Pass& pass) { return pass.attention()[i].received; });
      attention.keys = rows_of(part, [i](const ClipVit::Pass& pass) { return pass.attention()[i].keys; });
    }
    out.windows.resize(count(part) + class_tokens());  // one
    out.structure = part.structure;
  }
  return outputs;
}

VisionOutput ClipTiles::finish() {
  std::vector<VisionOutput> parts = outputs();
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].embeds = rows_of(parts_[i], [](const ClipVit::Pass& pass) { return pass.state(); });
    if (taps_.shared) parts[i].shared = shared_(parts[i].embeds);
  }
  return joined(parts, class_tokens());
}

}  // namespace glimpse
