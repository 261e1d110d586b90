#include "glimpse/nn/forward.h"

#include <algorithm>

#include "glimpse/nn/row_blocks.h"

namespace glimpse {

int64_t Forward::step_rows() const {
  const int64_t left = rows_.defined() ? rows_.size(0) - rows_run() : 0;
  return left <= block_rows_ ? left : next_block(left, block_rows_);
}

void Forward::step() {
  if (!through_) {
    if (hooks_.before) hooks_.before(layer_, rows_, batch_);
    through_ = 0;
  }
  if (!batch_.sequences.empty()) run_block();
  if (batch_.sequences.empty() || *through_ < rows_.size(0)) return;
  if (hooks_.after) hooks_.after(layer_, rows_, batch_);
  ++layer_;
  through_.reset();
}

at::Tensor Forward::run() {
  while (!done()) step();
  return rows_;
}

// The layer over the next rows. Attention goes on from what the caches hold of the rows before.
void Forward::run_block() {
  const int64_t begin = *through_, end = begin + step_rows();
  if (begin == 0 && end == rows_.size(0)) {
    rows_ = decoder_.layer(layer_, rows_, batch_);
  } else if (begin < end) {
    const at::Tensor rows = rows_.narrow(0, begin, end - begin);
    const at::Tensor out = decoder_.layer(layer_, rows, block(begin, end));
    if (!out.is_alias_of(rows)) rows.copy_(out);
  }
  through_ = end;
}

// The part of the batch that the rows from `begin` to `end` are.
RaggedBatch Forward::block(int64_t begin, int64_t end) const {
  RaggedBatch out{
      {}, {batch_.rope.cos.narrow(0, begin, end - begin), batch_.rope.sin.narrow(0, begin, end - begin)}};
  int64_t first = 0;
  for (const SequenceRows& sequence : batch_.sequences) {
    const auto own = [&](int64_t row) { return std::clamp<int64_t>(row - first, 0, sequence.count); };
    const int64_t from = own(begin), to = own(end), apart = sequence.count - sequence.apart;
    first += sequence.count;
    if (from == to) continue;
    SequenceRows part{
        sequence.cache, to - from, {}, std::max<int64_t>(to - std::max(from, apart), 0), sequence.count - to};
    for (const AttentionTap& tap : sequence.taps)
      if (tap.row >= from && tap.row < to) part.taps.push_back({tap.row - from, tap.logits, tap.all_keys});
    out.sequences.push_back(std::move(part));
  }
  return out;
}

void Forward::remove(size_t sequence) {
  int64_t first = 0;
  for (size_t i = 0; i < sequence; ++i) first += batch_.sequences[i].count;
  const int64_t end = first + batch_.sequences[sequence].count, rows = rows_.size(0);
  batch_.sequences.erase(batch_.sequences.begin() + static_cast<std::ptrdiff_t>(sequence));
  const auto without = [&](const at::Tensor& t) {
    return at::cat({t.narrow(0, 0, first), t.narrow(0, end, rows - end)});
  };
  rows_ = without(rows_);
  batch_.rope = {without(batch_.rope.cos), without(batch_.rope.sin)};
  if (through_) *through_ -= std::clamp<int64_t>(*through_ - first, 0, end - first);
}

}  // namespace glimpse
