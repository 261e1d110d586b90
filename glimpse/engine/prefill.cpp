#include "glimpse/engine/prefill.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "glimpse/base/timer.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

EmbeddedPrompt embed_prompt(const Vlm& model, const Prompt& prompt, const VisionTaps& taps) {
  EmbeddedPrompt out;
  if (!prompt.images.empty()) out.vision = model.encode(prompt.patches, taps);
  const at::Tensor visual = std::exchange(out.vision.embeds, {});  // later only the taps are needed
  out.rows = embed_rows(model, prompt.ids, prompt.visual_rows, visual);
  return out;
}

at::Tensor embed_rows(const Vlm& model, const std::vector<int64_t>& ids,
                      const std::vector<int64_t>& visual_rows, const at::Tensor& visual) {
  const at::Device device = model.decoder().options().device();
  at::Tensor rows = model.decoder().embed(index_tensor(ids, device));
  if (!visual.defined()) return rows;
  check(visual.size(0) == std::ssize(visual_rows), "the encoder gave ", visual.size(0), " visual tokens for ",
        visual_rows.size(), " places");
  return rows.index_copy_(0, index_tensor(visual_rows, device), model.project(visual));
}

void PrefillBatch::add(Sequence& sequence) {
  const at::NoGradGuard no_grad;
  invariant(!started_, "a sequence joined a prefill that is under way");
  lanes_.emplace_back(model_, sequence, cache_);
}

int64_t PrefillBatch::rows() const {
  int64_t sum = 0;
  for (const Lane& lane : lanes_) sum += lane.rows();
  return sum;
}

int64_t PrefillBatch::step_rows() const {
  if (started_) return next_block(rows() - through_.value_or(0), block_rows_);
  for (const Lane& lane : lanes_)
    if (lane.encoder_steps() > 0) return std::ssize(lane.sequence().prompt.visual_rows);
  return 0;
}

int64_t PrefillBatch::rows_left() const {
  int64_t sum = rows() * (model_.decoder().config().layers - layer_) - through_.value_or(0);
  for (const Lane& lane : lanes_)
    sum += lane.encoder_steps() * std::ssize(lane.sequence().prompt.visual_rows);
  return sum;
}

// Makes the ragged batch of the lanes' rows.
void PrefillBatch::assemble(const std::vector<at::Tensor>& rows) {
  if (lanes_.empty()) {
    x_.reset();
    return;
  }
  std::vector<at::Tensor> cos, sin;
  for (const Lane& lane : lanes_) {
    const Rope own = lane.rope();
    cos.push_back(own.cos);
    sin.push_back(own.sin);
  }
  rope_ = {at::cat(cos), at::cat(sin)};
  x_ = at::cat(rows);
}

void PrefillBatch::remove(const Sequence& sequence) {
  std::vector<at::Tensor> left;
  int64_t first = 0, gone = 0;
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    const int64_t rows = lane->rows();
    if (&lane->sequence() == &sequence) {
      lane = lanes_.erase(lane);
      if (through_) gone = std::clamp<int64_t>(*through_ - first, 0, rows);
    } else {
      if (started_) left.push_back(x_.narrow(0, first, rows));
      ++lane;
    }
    first += rows;
  }
  if (through_) *through_ -= gone;
  if (started_) assemble(left);
}

// A step of the first encoder that has not ended. After the last one the lanes' rows come together.
void PrefillBatch::encode(std::vector<Failure>& failures) {
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    try {
      if (!lane->is_embedded()) lane->encode();
      if (!lane->is_embedded()) return;
      ++lane;
    } catch (const std::exception&) {
      failures.push_back({&lane->sequence(), std::current_exception()});
      lane = lanes_.erase(lane);
    }
  }
  std::vector<at::Tensor> rows;
  for (Lane& lane : lanes_) rows.push_back(lane.take_rows());
  assemble(rows);
  started_ = true;
}

// Does what is due at `when` in every lane and puts the ragged batch together again.
void PrefillBatch::pass(int64_t when, std::vector<Failure>& failures) {
  if (std::none_of(lanes_.begin(), lanes_.end(), [&](const Lane& lane) { return lane.due(when); })) return;
  std::vector<at::Tensor> left;
  int64_t first = 0;
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    const int64_t rows = lane->rows();
    try {
      left.push_back(lane->pass(when, x_.narrow(0, first, rows)));
      ++lane;
    } catch (const std::exception&) {
      failures.push_back({&lane->sequence(), std::current_exception()});
      lane = lanes_.erase(lane);
    }
    first += rows;
  }
  assemble(left);
}

void PrefillBatch::begin_layer(std::vector<Failure>& failures) {
  pass(Cut{Cut::Place::before, layer_}.when(), failures);
  int64_t first = 0;
  for (const Lane& lane : lanes_) {
    lane.add_guide(layer_, x_.narrow(0, first, lane.rows()));
    first += lane.rows();
  }
  through_ = 0;
}

// The layer over the next rows, in place. Attention goes on from what the caches hold of the rows before.
void PrefillBatch::run_block() {
  const int64_t begin = *through_, count = step_rows(), end = begin + count;
  if (count == 0) return;
  RaggedBatch batch{{}, {rope_.cos.narrow(0, begin, count), rope_.sin.narrow(0, begin, count)}};
  int64_t first = 0;
  for (Lane& lane : lanes_) {
    const auto own = [&](int64_t row) { return std::clamp<int64_t>(row - first, 0, lane.rows()); };
    if (own(begin) < own(end)) batch.sequences.push_back(lane.batch_rows(layer_, own(begin), own(end)));
    first += lane.rows();
  }
  const at::Tensor block = x_.narrow(0, begin, count), out = model_.decoder().layer(layer_, block, batch);
  if (!out.is_alias_of(block)) block.copy_(out);
  through_ = end;
}

void PrefillBatch::end_layer(const Observer& observe, std::vector<Failure>& failures) {
  if (observe) observe(layer_, x_);
  for (Lane& lane : lanes_) lane.after_layer(layer_);
  pass(Cut{Cut::Place::after, layer_}.when(), failures);
  ++layer_;
  through_.reset();
}

std::vector<PrefillBatch::Failure> PrefillBatch::step(const Observer& observe) {
  const at::NoGradGuard no_grad;
  std::vector<Failure> failures;
  if (!started_) {
    encode(failures);
    return failures;
  }
  const Timer timer;
  if (!through_) begin_layer(failures);
  if (!empty()) run_block();
  if (!empty() && through_ == rows()) end_layer(observe, failures);
  for (Lane& lane : lanes_) lane.sequence().times.prefill += timer.ms();
  return failures;
}

at::Tensor PrefillBatch::finish() {
  const at::NoGradGuard no_grad;
  const Timer timer;
  std::vector<int64_t> last;
  int64_t first = 0;
  for (Lane& lane : lanes_) {
    lane.finish();
    first += lane.rows();
    last.push_back(first - 1);
  }
  const at::Tensor logits = model_.decoder().logits(x_.index_select(0, index_tensor(last, x_.device())));
  synchronise(x_.device());
  for (Lane& lane : lanes_) {
    lane.sequence().times.prefill += timer.ms();
    lane.note_times();
  }
  return logits;
}

at::Tensor prefill(const Vlm& model, std::span<Sequence* const> sequences, const Observer& observe) {
  const auto check_stop = [&] {
    for (const Sequence* sequence : sequences)
      if (sequence->stop.stop_requested()) throw Cancelled();
  };
  PrefillBatch batch(model);
  for (Sequence* sequence : sequences) batch.add(*sequence);
  while (!batch.done()) {
    check_stop();
    for (const PrefillBatch::Failure& failure : batch.step(observe)) std::rethrow_exception(failure.error);
  }
  return batch.finish();
}

}  // namespace glimpse
