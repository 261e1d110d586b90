#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <span>

#include "glimpse/base/timer.h"
#include "glimpse/engine/sequence.h"
#include "glimpse/nn/attention.h"
#include "glimpse/prune/similarity.h"

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
        stages_.push_back({pruner.get(), pruner->taps(), pruner->cuts(), 0, 0, {}});
        std::sort(stages_.back().cuts.begin(), stages_.back().cuts.end(),
                  [](const Cut& a, const Cut& b) { return a.when() < b.when(); });
      }
    for (Stage& stage : stages_) {
      if (stage.taps.guide) guided_ = &stage;
      if (!last_ || stage.cuts.back().when() >= last_->cuts.back().when()) last_ = &stage;
    }
  }

  /// Runs the encoder; returns the embedded rows [T (+ guide), D].
  at::Tensor start() {
    const Prompt& prompt = sequence_.prompt;
    const Decoder& decoder = model_.decoder();
    VisionTaps taps;
    const auto add = [](auto& all, const auto& own) {
      all.insert(all.end(), own.begin(), own.end());
      return all.size() - own.size();
    };
    for (Stage& stage : stages_) {
      stage.first_state = add(taps.states, stage.taps.vision_layers);
      stage.first_attention = add(taps.attention, stage.taps.vision_attention);
    }
    const Timer timer;
    EmbeddedPrompt embedded = embed_prompt(model_, prompt, taps);
    at::Tensor x = std::move(embedded.rows);
    vision_ = std::move(embedded.vision);
    sequence_.times.vision = timer.ms();
    sequence_.cache = KvCache(decoder.config().layers);
    sequence_.position_ids = prompt.position_ids;
    sequence_.next_position = prompt.next_position;
    sequence_.shift.clear();
    if (guided_) {
      x = at::cat({x, guided_->taps.guide->added[0].unsqueeze(0)});
      const at::Tensor position = at::full({prompt.position_ids.size(0), 1}, prompt.next_position, at::kLong);
      sequence_.position_ids = at::cat({sequence_.position_ids, position}, 1);
    }
    living_.emplace(static_cast<int64_t>(prompt.ids.size()), prompt.visual_rows, guided_ != nullptr,
                    decoder.config().layers);
    return x;
  }

  /// Rotary tables of the current rows.
  Rope rope() const { return model_.rope(sequence_.position_ids.to(model_.decoder().options().device())); }

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

  bool cuts(int64_t when) const {
    const auto due = [&](const Cut& cut) { return cut.when() == when; };
    return std::any_of(stages_.begin(), stages_.end(), [&](const Stage& stage) {
      return std::any_of(stage.cuts.begin(), stage.cuts.end(), due);
    });
  }

  /// Runs the cuts due at `when` on the rows `hidden`; returns those that stay.
  at::Tensor cut(int64_t when, at::Tensor hidden) {
    for (Stage& stage : stages_)
      for (const Cut& cut : stage.cuts)
        if (cut.when() == when) hidden = cut_once(stage, cut, hidden);
    return hidden;
  }

  void finish() { sequence_.kept = living_->source; }

  Sequence& sequence() { return sequence_; }

 private:
  struct Stage {
    const Pruner* pruner;
    Taps taps;
    std::vector<Cut> cuts;
    size_t first_state = 0, first_attention = 0;
    std::vector<at::Tensor> attention;  // per tapped layer [n, H]
  };

  // What `stage` may look at before its cut; `hidden` are the current rows.
  View view_of(const Stage& stage, const Cut& cut, const at::Tensor& hidden) const {
    const at::Device device = hidden.device();
    const std::vector<int64_t> positions = living_->visual_positions();
    const int64_t prompt_rows = rows() - (living_->guide ? 1 : 0);
    const std::vector<int64_t> text = others(prompt_rows, positions);
    const auto slice = [](const auto& all, size_t first, size_t count) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(first);
      return std::vector(begin, begin + static_cast<std::ptrdiff_t>(count));
    };
    View view;
    view.images = sequence_.prompt.images;
    view.living = index_tensor(living_->source, device);
    const at::Tensor visual = index_tensor(positions, device);
    view.hidden = hidden.index_select(0, visual);
    view.text_hidden = hidden.index_select(0, index_tensor(text, device));
    const int64_t last_visual = sequence_.prompt.visual_rows.back();
    view.question = std::count_if(text.begin(), text.end(),
                                  [&](int64_t position) { return living_->rows[position] < last_visual; });
    view.vision_states = slice(vision_.states, stage.first_state, stage.taps.vision_layers.size());
    view.vision_attention =
        slice(vision_.attention, stage.first_attention, stage.taps.vision_attention.size());
    view.windows = vision_.windows;
    if (!stage.attention.empty()) view.attention = at::cat(stage.attention, 1);
    if (cut.ahead != Cut::Ahead::none) {
      invariant(cut.place == Cut::Place::before, "a cut reads ahead after its layer");
      const Rope tables = rope().rows(at::arange(prompt_rows, visual.options()));
      const bool rotated = cut.ahead == Cut::Ahead::with_rope;
      view.ahead =
          model_.decoder()
              .last_row_attention(cut.layer, hidden.narrow(0, 0, prompt_rows), rotated ? &tables : nullptr)
              .index_select(0, visual);
    }
    view.boxes = sequence_.boxes;
    return view;
  }

  // Positions count the rows that are left, from the first layer after the cut on.
  void renumber(const Cut& cut) {
    sequence_.position_ids = at::arange(rows(), at::kLong).unsqueeze(0);
    sequence_.shift.resize(model_.decoder().config().layers);
    const int64_t shift = sequence_.prompt.next_position - (rows() - (living_->guide ? 1 : 0));
    std::fill(sequence_.shift.begin() + (cut.when() + 1) / 2, sequence_.shift.end(), shift);
  }

  at::Tensor cut_once(Stage& stage, const Cut& cut, const at::Tensor& hidden) {
    const Timer timer;
    const View view = view_of(stage, cut, hidden);
    // Of several methods the last one has to meet the budget.
    const Selection selection =
        stage.pruner->select(view, cut, &stage == last_ ? sequence_.budget : Budget());
    if (selection.scores.defined()) {
      sequence_.scores = at::zeros({view.total()});
      sequence_.scores.index_copy_(0, view.living.cpu(), selection.scores.to(at::kCPU, at::kFloat));
    }
    // What other stages recorded about the dropped tokens goes too.
    const at::Tensor keep = index_tensor(selection.keep, hidden.device());
    for (Stage& other : stages_)
      for (at::Tensor& attention : other.attention) attention = attention.index_select(0, keep);
    const bool last_guided = guided_ == &stage && &cut == &stage.cuts.back();
    const at::Tensor stays = compact(selection, cut, last_guided, *living_, sequence_.cache);
    sequence_.position_ids = sequence_.position_ids.index_select(1, stays);
    if (cut.renumbers && sequence_.position_ids.size(0) == 1) renumber(cut);
    at::Tensor left = hidden.index_select(0, stays.to(hidden.device()));
    if (selection.features.defined())
      left.index_copy_(0, index_tensor(living_->visual_positions(), hidden.device()),
                       selection.features.to(left.options()));
    sequence_.times.prune += timer.ms();
    return left;
  }

  const Vlm& model_;
  Sequence& sequence_;
  std::vector<Stage> stages_;
  Stage *guided_ = nullptr, *last_ = nullptr;
  VisionOutput vision_;
  std::optional<LivingRows> living_;
  at::Tensor query_;
};

Rope rope_of(const std::vector<Lane>& lanes) {
  std::vector<at::Tensor> cos, sin;
  for (const Lane& lane : lanes) {
    const Rope own = lane.rope();
    cos.push_back(own.cos);
    sin.push_back(own.sin);
  }
  return {at::cat(cos), at::cat(sin)};
}

// Runs the cuts due at `when` in every lane and shortens the ragged batch accordingly.
void cut_all(std::vector<Lane>& lanes, int64_t when, at::Tensor& x, Rope& rope) {
  if (std::none_of(lanes.begin(), lanes.end(), [&](const Lane& lane) { return lane.cuts(when); })) return;
  std::vector<at::Tensor> left;
  int64_t first = 0;
  for (Lane& lane : lanes) {
    const int64_t rows = lane.rows();
    left.push_back(lane.cut(when, x.narrow(0, first, rows)));
    first += rows;
  }
  x = at::cat(left);
  rope = rope_of(lanes);
}

}  // namespace

EmbeddedPrompt embed_prompt(const Vlm& model, const Prompt& prompt, const VisionTaps& taps) {
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
  Rope rope = rope_of(lanes);
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
  for (Sequence* sequence : sequences) batch.sequences.push_back({&sequence->cache, 1, nullptr});
  const auto shift = [](const Sequence& sequence, int64_t layer) {
    return sequence.shift.empty() ? 0 : sequence.shift[layer];
  };
  const auto turns = [&](int64_t layer) {  // whether the positions differ from the layer before
    return layer == 0 || std::any_of(sequences.begin(), sequences.end(), [&](const Sequence* sequence) {
             return shift(*sequence, layer) != shift(*sequence, layer - 1);
           });
  };
  const int64_t components = sequences[0]->prompt.position_ids.size(0);
  at::Tensor x = decoder.embed(index_tensor(tokens, device));
  for (int64_t layer = 0; layer < decoder.config().layers; ++layer) {
    if (turns(layer)) {
      std::vector<int64_t> positions;
      for (const Sequence* sequence : sequences)
        positions.push_back(sequence->next_position - shift(*sequence, layer));
      batch.rope = model.rope(index_tensor(positions, device).expand({components, -1}));
    }
    x = decoder.layer(layer, x, batch);
  }
  for (Sequence* sequence : sequences) ++sequence->next_position;
  return decoder.logits(x);
}

}  // namespace glimpse
