#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <span>

#include "glimpse/base/timer.h"
#include "glimpse/engine/sequence.h"
#include "glimpse/nn/attention.h"

namespace glimpse {

namespace {

at::Tensor index_tensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

// One sequence's way through the prefill: its living rows, and what its pruners asked to be recorded.
class Lane {
 public:
  Lane(const Vlm& model, Sequence& sequence) : model_(model), sequence_(sequence) {
    if (!sequence.prompt.images.empty())
      for (const auto& pruner : sequence.pruners) {
        stages_.push_back({pruner.get(), pruner->taps(), pruner->cuts(), 0, {}});
        std::sort(stages_.back().cuts.begin(), stages_.back().cuts.end(),
                  [](const Cut& a, const Cut& b) { return a.when() < b.when(); });
      }
    for (Stage& stage : stages_)
      if (stage.taps.guide) guided_ = &stage;
  }

  /// Runs the encoder; returns the embedded rows [T (+ guide), D].
  at::Tensor start() {
    const Prompt& prompt = sequence_.prompt;
    const Decoder& decoder = model_.decoder();
    std::vector<int64_t> layers;
    for (Stage& stage : stages_) {
      stage.first_state = layers.size();
      layers.insert(layers.end(), stage.taps.vision_layers.begin(), stage.taps.vision_layers.end());
    }
    const Timer timer;
    EmbeddedPrompt embedded = embed_prompt(model_, prompt, layers);
    at::Tensor x = std::move(embedded.rows);
    vision_ = std::move(embedded.vision);
    sequence_.times.vision = timer.ms();
    sequence_.cache = KvCache(decoder.config().layers);
    sequence_.position_ids = prompt.position_ids;
    sequence_.next_position = prompt.next_position;
    if (guided_) {
      x = at::cat({x, guided_->taps.guide->added[0].unsqueeze(0)});
      const at::Tensor position = at::full({prompt.position_ids.size(0), 1}, prompt.next_position, at::kLong);
      sequence_.position_ids = at::cat({sequence_.position_ids, position}, 1);
    }
    living_.emplace(static_cast<int64_t>(prompt.ids.size()), prompt.visual_rows, guided_ != nullptr,
                    decoder.config().layers);
    return x;
  }

  int64_t rows() const { return static_cast<int64_t>(living_->rows.size()); }

  /// Adds the guide token's vector of this layer to the last of `x`'s rows [rows, D].
  void add_guide(int64_t layer, at::Tensor rows) const {
    if (layer == 0 || !living_->guide) return;
    const at::Tensor& added = guided_->taps.guide->added[layer];
    if (added.defined()) rows[-1] += added;
  }

  /// Where the layer should leave the last row's query, if a pruner wants its attention there.
  at::Tensor* wanted_query(int64_t layer) {
    const auto wants = [&](const Stage& stage) {
      const auto& layers = stage.taps.attention_layers;
      return std::find(layers.begin(), layers.end(), layer) != layers.end();
    };
    return std::any_of(stages_.begin(), stages_.end(), wants) ? &query_ : nullptr;
  }

  SequenceRows batch_rows(int64_t layer) {
    return {&sequence_.cache, rows(), wanted_query(layer), rows() - 1};
  }

  /// Notes what a layer that has just run leaves in the cache and the attention that was asked for.
  void after_layer(int64_t layer) {
    living_->cached[layer] = living_->rows;
    if (!wanted_query(layer)) return;
    const at::Tensor logits = attention_logits(query_, sequence_.cache.layers[layer]);  // [H, rows]
    const at::Tensor visual = index_tensor(living_->visual_positions(), logits.device());
    for (Stage& stage : stages_) {
      const auto& layers = stage.taps.attention_layers;
      if (std::find(layers.begin(), layers.end(), layer) == layers.end()) continue;
      const at::Tensor row = stage.taps.log_softmax ? logits.log_softmax(1) : logits;
      stage.attention.push_back(row.index_select(1, visual).t());  // [n, H]
    }
  }

  /// Runs the cuts due at `when`; returns the positions of the rows that stay, undefined if all do.
  at::Tensor cut(int64_t when, const at::Tensor& hidden) {
    at::Tensor left;
    for (Stage& stage : stages_)
      for (const Cut& cut : stage.cuts)
        if (cut.when() == when) {
          const at::Tensor stays =
              cut_once(stage, cut, left.defined() ? hidden.index_select(0, left) : hidden);
          left = left.defined() ? left.index_select(0, stays) : stays;
        }
    return left;
  }

  void finish() { sequence_.kept = living_->source; }

  Sequence& sequence() { return sequence_; }

 private:
  struct Stage {
    const Pruner* pruner;
    Taps taps;
    std::vector<Cut> cuts;
    size_t first_state = 0;
    std::vector<at::Tensor> attention;  // per tapped layer [n, H]
  };

  at::Tensor cut_once(Stage& stage, const Cut& cut, const at::Tensor& hidden) {
    const Timer timer;
    const at::Device device = hidden.device();
    const std::vector<int64_t> positions = living_->visual_positions();
    std::vector<int64_t> text;
    for (int64_t i = 0, v = 0; i < rows() - (living_->guide ? 1 : 0); ++i)
      if (v < static_cast<int64_t>(positions.size()) && positions[v] == i)
        ++v;
      else
        text.push_back(i);
    View view;
    view.images = sequence_.prompt.images;
    view.living = index_tensor(living_->source, device);
    view.hidden = hidden.index_select(0, index_tensor(positions, device));
    view.text_hidden = hidden.index_select(0, index_tensor(text, device));
    view.vision_states.assign(vision_.states.begin() + stage.first_state,
                              vision_.states.begin() + stage.first_state + stage.taps.vision_layers.size());
    view.windows = vision_.windows;
    if (!stage.attention.empty()) view.attention = at::cat(stage.attention, 1);
    view.boxes = sequence_.boxes;

    const Selection selection = stage.pruner->select(view, cut, sequence_.budget);
    if (selection.scores.defined()) {
      sequence_.scores = at::zeros({view.total()});
      sequence_.scores.index_copy_(0, view.living.cpu(), selection.scores.to(at::kCPU, at::kFloat));
    }
    // What other stages recorded about the dropped tokens goes too.
    const at::Tensor keep = index_tensor(selection.keep, device);
    for (Stage& other : stages_)
      for (at::Tensor& attention : other.attention) attention = attention.index_select(0, keep);
    const bool last_guided = guided_ == &stage && &cut == &stage.cuts.back();
    const at::Tensor stays = compact(selection, cut, last_guided, *living_, sequence_.cache);
    sequence_.position_ids = sequence_.position_ids.index_select(1, stays);
    sequence_.times.prune += timer.ms();
    if (selection.features.defined()) features_ = selection.features;
    return stays.to(device);
  }

 public:
  /// New hidden states of the living visual tokens (merging), to be written after a cut.
  void write_features(at::Tensor rows) {
    if (!features_.defined()) return;
    rows.index_copy_(0, index_tensor(living_->visual_positions(), rows.device()),
                     features_.to(rows.options()));
    features_.reset();
  }

 private:
  const Vlm& model_;
  Sequence& sequence_;
  std::vector<Stage> stages_;
  Stage* guided_ = nullptr;
  VisionOutput vision_;
  std::optional<LivingRows> living_;
  at::Tensor query_, features_;
};

// Runs the cuts due at `when` in every lane and shortens the ragged batch accordingly.
void cut_all(std::vector<Lane>& lanes, int64_t when, at::Tensor& x, Rope& rope) {
  std::vector<at::Tensor> left;
  bool any = false;
  int64_t first = 0;
  for (Lane& lane : lanes) {
    const int64_t rows = lane.rows();
    const at::Tensor stays = lane.cut(when, x.narrow(0, first, rows));
    left.push_back((stays.defined() ? stays : at::arange(rows, x.options().dtype(at::kLong))) + first);
    any = any || stays.defined();
    first += rows;
  }
  if (!any) return;
  const at::Tensor index = at::cat(left);
  x = x.index_select(0, index);
  rope = rope.rows(index);
  first = 0;
  for (Lane& lane : lanes) {
    lane.write_features(x.narrow(0, first, lane.rows()));
    first += lane.rows();
  }
}

}  // namespace

EmbeddedPrompt embed_prompt(const Vlm& model, const Prompt& prompt, const std::vector<int64_t>& taps) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  EmbeddedPrompt out{decoder.embed(index_tensor(prompt.ids, device)), {}};
  if (prompt.images.empty()) return out;
  out.vision = model.encode(prompt.patches, taps);
  check(out.vision.embeds.size(0) == static_cast<int64_t>(prompt.visual_rows.size()), "the encoder gave ",
        out.vision.embeds.size(0), " visual tokens for ", prompt.visual_rows.size(), " places");
  out.rows.index_copy_(0, index_tensor(prompt.visual_rows, device), out.vision.embeds);
  out.vision.embeds.reset();  // it is embedded now; only the taps are still needed
  return out;
}

at::Tensor prefill(const Vlm& model, std::span<Sequence* const> sequences, const Observer& observe) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  std::vector<Lane> lanes;
  lanes.reserve(sequences.size());  // lanes refer to their own members
  for (Sequence* sequence : sequences) lanes.emplace_back(model, *sequence);
  std::vector<at::Tensor> rows;
  for (Lane& lane : lanes) {
    rows.push_back(lane.start());
    if (lane.sequence().stop.stop_requested()) throw Cancelled();
  }
  const Timer timer;
  std::vector<at::Tensor> cos, sin;
  for (Lane& lane : lanes) {
    const Rope own = model.rope(lane.sequence().position_ids.to(decoder.options().device()));
    cos.push_back(own.cos);
    sin.push_back(own.sin);
  }
  Rope rope{at::cat(cos), at::cat(sin)};
  at::Tensor x = at::cat(rows);
  rows.clear();

  for (int64_t layer = 0; layer < decoder.config().layers; ++layer) {
    cut_all(lanes, Cut{Cut::Place::before, layer}.when(), x, rope);
    RaggedBatch batch{{}, rope};
    int64_t first = 0;
    for (Lane& lane : lanes) {
      if (lane.sequence().stop.stop_requested()) throw Cancelled();
      lane.add_guide(layer, x.narrow(0, first, lane.rows()));
      batch.sequences.push_back(lane.batch_rows(layer));
      first += lane.rows();
    }
    x = decoder.layer(layer, x, batch);
    if (observe) observe(layer, x);
    for (Lane& lane : lanes) lane.after_layer(layer);
    cut_all(lanes, Cut{Cut::Place::after, layer}.when(), x, rope);
  }

  std::vector<int64_t> last;
  int64_t first = 0;
  for (Lane& lane : lanes) {
    lane.finish();
    first += lane.rows();
    last.push_back(first - 1);
  }
  const at::Tensor logits = decoder.logits(x.index_select(0, index_tensor(last, x.device())));
  for (Sequence* sequence : sequences) sequence->times.prefill = timer.ms();
  return logits;
}

at::Tensor decode_step(const Vlm& model, std::span<Sequence* const> sequences,
                       const std::vector<int64_t>& tokens) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  RaggedBatch batch;
  std::vector<int64_t> positions;
  for (Sequence* sequence : sequences) {
    batch.sequences.push_back({&sequence->cache, 1, nullptr});
    positions.push_back(sequence->next_position++);
  }
  const int64_t components = sequences[0]->prompt.position_ids.size(0);
  batch.rope = model.rope(index_tensor(positions, device).expand({components, -1}));
  at::Tensor x = decoder.embed(index_tensor(tokens, device));
  for (int64_t layer = 0; layer < decoder.config().layers; ++layer) x = decoder.layer(layer, x, batch);
  return decoder.logits(x);
}

}  // namespace glimpse
