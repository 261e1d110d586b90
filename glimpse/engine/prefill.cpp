#include "glimpse/engine/prefill.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "glimpse/base/timer.h"
#include "glimpse/engine/index_tensor.h"

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
  invariant(!started(), "a sequence joined a prefill that is under way");
  Lane& lane = lanes_.emplace_back(model_, sequence, cache_);
  try {
    const at::Tensor rows = lane.start();
    x_ = x_.defined() ? at::cat({x_, rows}) : rows;
  } catch (...) {
    lanes_.pop_back();
    throw;
  }
  update_rope();
}

void PrefillBatch::update_rope() {
  std::vector<at::Tensor> cos, sin;
  for (const Lane& lane : lanes_) {
    const Rope own = lane.rope();
    cos.push_back(own.cos);
    sin.push_back(own.sin);
  }
  if (!lanes_.empty()) rope_ = {at::cat(cos), at::cat(sin)};
}

void PrefillBatch::remove(const Sequence& sequence) {
  std::vector<at::Tensor> left;
  int64_t first = 0;
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    const int64_t rows = lane->rows();
    if (&lane->sequence() == &sequence) {
      lane = lanes_.erase(lane);
    } else {
      left.push_back(x_.narrow(0, first, rows));
      ++lane;
    }
    first += rows;
  }
  x_ = left.empty() ? at::Tensor() : at::cat(left);
  update_rope();
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
  x_ = left.empty() ? at::Tensor() : at::cat(left);
  update_rope();
}

std::vector<PrefillBatch::Failure> PrefillBatch::step(const Observer& observe) {
  const at::NoGradGuard no_grad;
  const Timer timer;
  std::vector<Failure> failures;
  pass(Cut{Cut::Place::before, layer_}.when(), failures);
  if (!empty()) {
    RaggedBatch batch{{}, rope_};
    int64_t first = 0;
    for (Lane& lane : lanes_) {
      lane.add_guide(layer_, x_.narrow(0, first, lane.rows()));
      batch.sequences.push_back(lane.batch_rows(layer_));
      first += lane.rows();
    }
    x_ = model_.decoder().layer(layer_, x_, batch);
    if (observe) observe(layer_, x_);
    for (Lane& lane : lanes_) lane.after_layer(layer_);
    pass(Cut{Cut::Place::after, layer_}.when(), failures);
  }
  ++layer_;
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
  for (Lane& lane : lanes_) lane.sequence().times.prefill += timer.ms();
  return logits;
}

at::Tensor prefill(const Vlm& model, std::span<Sequence* const> sequences, const Observer& observe) {
  const auto check_stop = [&] {
    for (const Sequence* sequence : sequences)
      if (sequence->stop.stop_requested()) throw Cancelled();
  };
  PrefillBatch batch(model);
  for (Sequence* sequence : sequences) {
    sequence->times.prefill = 0;
    batch.add(*sequence);
    check_stop();
  }
  while (!batch.done()) {
    check_stop();
    for (const PrefillBatch::Failure& failure : batch.step(observe)) std::rethrow_exception(failure.error);
  }
  return batch.finish();
}

}  // namespace glimpse
