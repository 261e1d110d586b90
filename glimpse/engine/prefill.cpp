#include "glimpse/engine/prefill.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "glimpse/base/timer.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

EmbeddedPrompt embed_prompt(const Vlm& model, const Prompt& prompt, const VisionTaps& taps) {
  EmbeddedPrompt out;
  if (!prompt.segments.empty()) out.vision = model.encode(prompt.patches, taps);
  const at::Tensor visual = std::exchange(out.vision.embeds, {});  // later only the taps are needed
  out.rows = embed_rows(model, prompt.ids, prompt.visual_rows, visual, prompt.structure_rows,
                        std::exchange(out.vision.structure, {}));
  return out;
}

at::Tensor embed_rows(const Vlm& model, const std::vector<int64_t>& ids,
                      const std::vector<int64_t>& visual_rows, const at::Tensor& visual,
                      const std::vector<int64_t>& structure_rows, const at::Tensor& structure) {
  const at::Device device = model.decoder().options().device();
  at::Tensor rows = model.decoder().embed(index_tensor(ids, device));
  if (!visual.defined()) return rows;
  check(visual.size(0) == std::ssize(visual_rows), "the encoder gave ", visual.size(0), " visual tokens for ",
        visual_rows.size(), " places");
  rows.index_copy_(0, index_tensor(visual_rows, device), model.project(visual));
  if (structure.defined())
    rows.index_copy_(0, index_tensor(structure_rows, device), structure.to(rows.options()));
  return rows;
}

void PrefillBatch::record_gradients() {
  invariant(!cache_, "image prefixes are kept without gradients");
  gradients_ = true;
}

void PrefillBatch::add(Sequence& sequence) {
  const at::AutoGradMode mode(gradients_);
  invariant(!started(), "a sequence joined a prefill that is under way");
  lanes_.emplace_back(model_, sequence, cache_);
}

int64_t PrefillBatch::rows() const {
  int64_t sum = 0;
  for (const Lane& lane : lanes_) sum += lane.rows();
  return sum;
}

int64_t PrefillBatch::step_rows() const {
  if (started()) return forward_->step_rows();
  for (const Lane& lane : lanes_)
    if (lane.encoder_steps() > 0) return lane.visual_tokens();
  return 0;
}

int64_t PrefillBatch::rows_left() const {
  const int64_t layers = model_.decoder().config().layers;
  int64_t sum = started() ? rows() * (layers - forward_->layer()) - forward_->rows_run() : rows() * layers;
  for (const Lane& lane : lanes_) sum += lane.encoder_steps() * lane.visual_tokens();
  return sum;
}

void PrefillBatch::remove(const Sequence& sequence) {
  const at::AutoGradMode mode(gradients_);
  size_t index = 0;
  for (auto lane = lanes_.begin(); lane != lanes_.end(); ++lane, ++index)
    if (&lane->sequence() == &sequence) {
      if (started()) forward_->remove(index);
      lanes_.erase(lane);
      return;
    }
}

// A step of the first encoder that has not ended. After the last one the lanes' rows come together.
void PrefillBatch::encode() {
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    try {
      if (!lane->is_embedded()) lane->encode();
      if (!lane->is_embedded()) return;
      ++lane;
    } catch (const std::exception&) {
      lane = fail(lane);
    }
  }
  std::vector<at::Tensor> embedded;
  for (Lane& lane : lanes_) embedded.push_back(lane.take_rows());
  at::Tensor rows;
  RaggedBatch batch;
  assemble(embedded, rows, batch);
  LayerHooks hooks;
  hooks.before = [this](int64_t layer, at::Tensor& x, RaggedBatch& all) { before_layer(layer, x, all); };
  hooks.after = [this](int64_t layer, at::Tensor& x, RaggedBatch& all) { after_layer(layer, x, all); };
  forward_.emplace(model_.decoder(), rows, std::move(batch), std::move(hooks), 0,
                   model_.decoder().config().layers,
                   gradients_ ? std::numeric_limits<int64_t>::max() : block_rows_);
}

// A lane leaves with the error at hand; returns the next one.
std::list<Lane>::iterator PrefillBatch::fail(std::list<Lane>::iterator lane) {
  failures_.push_back({&lane->sequence(), std::current_exception()});
  return lanes_.erase(lane);
}

// Makes the ragged batch of the lanes' rows.
void PrefillBatch::assemble(const std::vector<at::Tensor>& own, at::Tensor& rows, RaggedBatch& batch) {
  batch.sequences.clear();
  if (lanes_.empty()) return rows.reset();
  std::vector<at::Tensor> cos, sin;
  for (Lane& lane : lanes_) {
    const Rope rope = lane.rope();
    cos.push_back(rope.cos);
    sin.push_back(rope.sin);
    batch.sequences.push_back({nullptr, lane.rows()});  // before_layer() says the rest
  }
  batch.rope = {at::cat(cos), at::cat(sin)};
  rows = at::cat(own);
}

// Does what is due in every lane and puts the ragged batch together again.
void PrefillBatch::pass(Moment when, at::Tensor& rows, RaggedBatch& batch) {
  if (std::none_of(lanes_.begin(), lanes_.end(), [&](const Lane& lane) { return lane.due(when); })) return;
  std::vector<at::Tensor> left;
  int64_t first = 0;
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    const int64_t count = lane->rows();
    try {
      left.push_back(lane->pass(when, rows.narrow(0, first, count)));
      ++lane;
    } catch (const std::exception&) {
      lane = fail(lane);
    }
    first += count;
  }
  assemble(left, rows, batch);
}

void PrefillBatch::before_layer(int64_t layer, at::Tensor& rows, RaggedBatch& batch) {
  // Methods that cut before a layer look at its input.
  int64_t first = 0;
  for (Lane& lane : lanes_) {
    lane.add_features(layer, rows.narrow(0, first, lane.rows()));
    first += lane.rows();
  }
  pass(Moment::before(layer), rows, batch);
  first = 0;
  auto sequence = batch.sequences.begin();
  for (Lane& lane : lanes_) {
    lane.add_guides(layer, rows.narrow(0, first, lane.rows()));
    *sequence++ = lane.sequence_rows(layer);
    first += lane.rows();
  }
}

void PrefillBatch::after_layer(int64_t layer, at::Tensor& rows, RaggedBatch& batch) {
  if (observe_) observe_(layer, rows);
  for (Lane& lane : lanes_) lane.after_layer(layer);
  pass(Moment::after(layer), rows, batch);
}

std::vector<PrefillBatch::Failure> PrefillBatch::step(const Observer& observe) {
  const at::AutoGradMode mode(gradients_);
  observe_ = observe;
  if (!started()) {
    encode();
  } else {
    const Timer timer;
    forward_->step();
    for (Lane& lane : lanes_) lane.sequence().times.prefill += timer.ms();
  }
  return std::exchange(failures_, {});
}

at::Tensor PrefillBatch::finish(int64_t last) {
  const at::AutoGradMode mode(gradients_);
  const Timer timer;
  std::vector<int64_t> wanted;
  int64_t first = 0;
  for (Lane& lane : lanes_) {
    lane.finish();
    first += lane.rows();
    for (int64_t row = first - std::min(last, lane.rows()); row < first; ++row) wanted.push_back(row);
  }
  const at::Tensor& rows = forward_->rows();
  const at::Tensor logits =
      model_.decoder().logits(rows.index_select(0, index_tensor(wanted, rows.device())));
  synchronise(rows.device());
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
