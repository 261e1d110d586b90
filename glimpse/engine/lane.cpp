#include "glimpse/engine/lane.h"

#include <algorithm>
#include <utility>

#include "glimpse/base/timer.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

Lane::Lane(const Vlm& model, Sequence& sequence, PrefixCache* cache)
    : model_(model), sequence_(sequence), cache_(cache), cut_time_(model.decoder().options().device()) {
  if (!sequence.prompt.segments.empty())
    for (const auto& pruner : sequence.pruners) {
      stages_.push_back({pruner.get(), pruner->taps(), pruner->cuts(), 0, 0, {}, {}});
      std::sort(stages_.back().cuts.begin(), stages_.back().cuts.end(),
                [](const Cut& a, const Cut& b) { return a.when() < b.when(); });
    }
  std::vector<int64_t> within;  // encoder blocks after which there is a cut
  for (Stage& stage : stages_) {
    if (stage.taps.guide) guides_.push_back(&stage);
    if (!last_ || stage.cuts.back().when() >= last_->cuts.back().when()) last_ = &stage;
    const auto add = [](auto& all, const auto& own) {
      all.insert(all.end(), own.begin(), own.end());
      return all.size() - own.size();
    };
    if (stage.taps.pictures) pictures_ = pictures_hash(sequence.prompt.patches);
    taps_.shared |= stage.taps.shared_space;
    for (const Cut& cut : stage.cuts) {
      taps_.class_tokens |= cut.place == Cut::Place::encoder;
      if (cut.place == Cut::Place::within) within.push_back(cut.layer);
    }
    stage.first_state = add(taps_.states, stage.taps.vision_layers);
    stage.first_attention = add(taps_.attention, stage.taps.vision_attention);
  }
  if (cache && sequence.prefix_key) end_ = prefix_end(sequence.prompt, sequence.pruners, layers());
  if (end_) prefix_ = cache_->find(*sequence_.prefix_key);

  const Prompt& prompt = sequence_.prompt;
  sequence_.cache = KvCache(layers(), sequence_.kv);
  sequence_.position_ids = prompt.position_ids;
  sequence_.next_position = prompt.next_position;
  sequence_.shift.clear();
  sequence_.left.clear();
  sequence_.question_rows.clear();
  sequence_.times = {};
  living_.emplace(static_cast<int64_t>(prompt.ids.size()), prompt.visual_rows, layers());
  if (prefix_)
    resume();
  else if (!prompt.segments.empty())
    start_encoder(within);
}

void Lane::start_encoder(const std::vector<int64_t>& cut_after) {
  const std::vector<Patches>& patches = sequence_.prompt.patches;
  encoding_ = model_.encoding(patches, taps_);
  if (cut_after.empty()) return;
  check(encoding_->blocks_run().has_value(),
        "pruning: this model's encoder drops no tokens between its blocks, so there can be no cut within it");
  check(cut_after.size() == 1 && !taps_.class_tokens,
        "pruning: a cut within the encoder goes with no other one there or at the encoder's output");
  check(cut_after[0] + 1 < model_.vision_depth(), "pruning: a cut after block ", cut_after[0],
        " of the encoder, which has ", model_.vision_depth(), " and needs another one to follow");
  cut_block_ = cut_after[0];
  if (!cache_) return;
  const PrefixKey key =
      encoder_key(sequence_.prompt, taps_, *cut_block_ + 1, model_.weights_version(), cache_->seed());
  if (const auto kept = cache_->find(key))
    encoding_ = kept->encoding->copy();
  else
    encoder_key_ = key;
}

// Other questions about the images go on from where the encoder is now.
void Lane::keep_encoder() {
  auto kept = std::make_shared<ImagePrefix>();
  kept->encoding = encoding_->copy();
  cache_->insert(*encoder_key_, std::move(kept));
  encoder_key_.reset();
}

void Lane::encode() {
  const Timer timer;
  const double pruned = sequence_.times.prune;
  if (encoder_steps() > 0) {
    cut_within_encoder();  // one that was kept stands before its cut
    encoding_->step();
    cut_within_encoder();
  }
  if (encoder_steps() == 0) {
    embedded_ = embed();
    synchronise(embedded_.device());
  }
  const double pruning = sequence_.times.prune - pruned;  // counted with the prefill
  sequence_.times.vision += timer.ms() - pruning;
  sequence_.times.prefill += pruning;
}

// The rows that enter the language model: of the prompt, those of a prefix from the cache left out, and the
// guide token.
at::Tensor Lane::embed() {
  const Prompt& prompt = sequence_.prompt;
  at::Tensor visual;
  if (encoding_) vision_ = std::exchange(encoding_, nullptr)->finish();
  if (vision_.embeds.defined()) {
    visual = std::exchange(vision_.embeds, {});  // later only the taps are needed
    if (taps_.class_tokens)
      visual = cut_encoder(visual);
    else if (visual_tokens() < visual.size(0))
      visual = visual.index_select(0, index_tensor(living_->source, visual.device()));
  }
  std::vector<int64_t> ids;
  for (const int64_t row : std::span(living_->rows).subspan(skipped())) ids.push_back(prompt.ids[row]);
  at::Tensor x = embed_rows(model_, ids, living_->visual_positions(), visual,
                            living_->positions(prompt.structure_rows), std::exchange(vision_.structure, {}));
  if (taps_.shared) {
    question_ = model_.encode_text(prompt.question);
    sequence_.question_rows = question_.rows;
  }
  if (guides_.empty()) return x;
  std::vector<at::Tensor> rows = {x};
  for (const Stage* stage : guides_) rows.push_back(stage->taps.guide->added[0].unsqueeze(0));
  const int64_t place = prompt.next_position - (sequence_.shift.empty() ? 0 : sequence_.shift[0]);
  const at::Tensor places = at::full({prompt.position_ids.size(0), guides()}, place, at::kLong);
  sequence_.position_ids = at::cat({sequence_.position_ids, places}, 1);
  return at::cat(rows);
}

// Runs the cut within the encoder if it stands there. Nothing else has begun then.
void Lane::cut_within_encoder() {
  if (!cut_block_ || encoding_->blocks_run() != *cut_block_ + 1) return;
  if (encoder_key_) keep_encoder();
  cut_block_.reset();
  for (Stage& stage : stages_)
    for (const Cut& cut : stage.cuts) {
      if (cut.place != Cut::Place::within) continue;
      const Timer timer;
      const at::Device device = model_.decoder().options().device();
      const std::vector<int64_t>& ids = sequence_.prompt.ids;
      std::vector<int64_t> words;
      for (const int64_t row : others(std::ssize(ids), sequence_.prompt.media_rows()))
        words.push_back(ids[row]);
      View view = encoder_view(stage, encoding_->recorded(), {}, index_tensor(living_->source, device));
      view.text_hidden = model_.decoder().embed(index_tensor(words, device));
      view.question = index_tensor(sequence_.prompt.question_rows, device);
      const at::Tensor stay = compact(choose(stage, cut, view), cut, *living_, sequence_.cache);
      sequence_.position_ids = sequence_.position_ids.index_select(1, stay);
      sequence_.left.push_back(visual_tokens());
      if (visual_tokens() < view.total()) encoding_->keep(living_->source);
      sequence_.times.prune += timer.ms();
    }
}

// Runs the cuts at the encoder's output [S, Dv], where tokens have no rows yet; returns what enters the
// language model.
at::Tensor Lane::cut_encoder(const at::Tensor& embeds) {
  const Timer timer;
  const auto& segments = sequence_.prompt.segments;
  std::vector<int64_t> tokens;
  for (const Segment& segment : segments) {
    const int64_t class_token = std::ssize(sequence_.prompt.visual_rows) + (&segment - segments.data());
    if (class_token < embeds.size(0)) tokens.push_back(class_token);
    for (int64_t i = 0; i < segment.count(); ++i) tokens.push_back(segment.first + i);
  }
  living_->source = tokens;
  at::Tensor left = embeds.index_select(0, index_tensor(tokens, embeds.device()));
  std::optional<Cut> last;
  for (Stage& stage : stages_)
    for (const Cut& cut : stage.cuts) {
      if (cut.place != Cut::Place::encoder) continue;
      const at::Tensor index = index_tensor(living_->source, left.device());
      const Selection selection = choose(stage, cut, encoder_view(stage, vision_, left, index));
      living_->source = selected(selection, living_->source);
      sequence_.left.push_back(visual_tokens());
      left = selection.features.defined() ? selection.features.to(left.options())
                                          : left.index_select(0, index_tensor(selection.keep, left.device()));
      last = cut;
    }
  living_->enter(living_->source, segments);
  sequence_.position_ids = sequence_.position_ids.index_select(1, at::tensor(living_->rows, at::kLong));
  check(
      last->renumbers && sequence_.position_ids.size(0) == 1,
      "pruning: a cut at the encoder's output, whose tokens leave their places, renumbers and needs a model "
      "whose positions count rows (not M-RoPE)");
  renumber(*last);
  sequence_.times.prune += timer.ms();
  return left;
}

// Goes on with the rows after the prefix; its own stay away from the layers that they have been through.
void Lane::resume() {
  const Prompt& prompt = sequence_.prompt;
  const auto is_left = [&](int64_t row) {
    return row >= prefix_->tokens || std::binary_search(prefix_->rows.begin(), prefix_->rows.end(), row);
  };
  joined_ = false;
  vision_ = prefix_->vision;
  std::erase_if(living_->rows, [&](int64_t row) { return !is_left(row); });
  living_->visual = prefix_->visual;
  living_->source = prefix_->source;
  std::copy(prefix_->layers.begin(), prefix_->layers.end(), sequence_.cache.layers.begin());
  sequence_.shift = prefix_->shift;
  sequence_.left = prefix_->left;
  sequence_.scores = prefix_->scores;
  sequence_.cached_tokens = prefix_->tokens;
  // Only cuts before the first layer lie behind, so that what they took off positions is the same everywhere.
  const int64_t shift = sequence_.shift.empty() ? 0 : sequence_.shift[0];
  const int64_t left = static_cast<int64_t>(prompt.ids.size()) - prefix_->tokens;
  const at::Tensor positions = prompt.position_ids.narrow(1, prefix_->tokens, left) - shift;
  sequence_.position_ids = at::cat({prefix_->position_ids, positions}, 1);
}

void Lane::leave_prefix(const at::Tensor& hidden) const {
  auto prefix = std::make_shared<ImagePrefix>();
  prefix->tokens = end_->tokens;
  const auto after = std::lower_bound(living_->rows.begin(), living_->rows.end(), end_->tokens);
  prefix->rows.assign(living_->rows.begin(), after);
  const auto rows = std::ssize(prefix->rows);
  prefix->visual = living_->visual;
  prefix->source = living_->source;
  for (int64_t l = 0; l < end_->when.layers_run; ++l)
    prefix->layers.push_back(sequence_.cache.layers[l].first(rows));
  if (hidden.defined()) {  // else nothing is cut any more
    prefix->hidden = hidden.narrow(0, 0, rows).clone();
    prefix->vision = vision_;
    std::vector<at::Tensor>& additions = prefix->vision.additions;  // those of layers run are in its rows
    for (int64_t l = 0; l < std::min(end_->when.layers_run, std::ssize(additions)); ++l) additions[l].reset();
  }
  prefix->position_ids = sequence_.position_ids.narrow(1, 0, rows).clone();
  prefix->shift = sequence_.shift;
  prefix->left = sequence_.left;
  prefix->scores = sequence_.scores;
  cache_->insert(*sequence_.prefix_key, std::move(prefix));
}

Rope Lane::rope() const {
  const at::Tensor positions = sequence_.position_ids.narrow(1, skipped(), rows());
  return model_.rope(to_device(positions, model_.decoder().options().device()));
}

void Lane::add_features(int64_t layer, at::Tensor rows) {
  const std::vector<at::Tensor>& additions = vision_.additions;
  if (layer < std::ssize(additions) && additions[layer].defined() && joined_)
    rows.index_add_(0, indices().visual, additions[layer].index_select(0, indices().living));
}

void Lane::add_guides(int64_t layer, at::Tensor rows) {
  if (layer == 0) return;  // the guide tokens' first vectors are what was embedded
  for (int64_t i = 0; i < guides(); ++i) {
    const at::Tensor& added = guides_[i]->taps.guide->added[layer];
    if (added.defined()) rows[prompt_rows() + i] += added;
  }
}

bool Lane::Stage::taps_layer(int64_t layer) const {
  const auto& wanted = taps.attention_layers;
  return std::find(wanted.begin(), wanted.end(), layer) != wanted.end();
}

SequenceRows Lane::sequence_rows(int64_t layer) {
  SequenceRows out{&sequence_.cache, rows(), {}, guides()};
  for (Stage& stage : stages_) {
    if (!stage.taps_layer(layer)) continue;
    // Its own guide token's attention, or that of the prompt's last row.
    const auto guide = std::find(guides_.begin(), guides_.end(), &stage);
    const int64_t row =
        guide == guides_.end() ? prompt_rows() - 1 : prompt_rows() + (guide - guides_.begin());
    out.taps.push_back({row, &stage.logits});
  }
  return out;
}

void Lane::after_layer(int64_t layer) {
  living_->cached[layer] = living_->rows;
  for (Stage& stage : stages_) {
    if (!stage.taps_layer(layer)) continue;
    const at::Tensor logits = std::exchange(stage.logits, {});
    const at::Tensor row = stage.taps.log_softmax ? logits.log_softmax(1) : logits;
    stage.attention.push_back(row.index_select(1, indices().visual).t());  // [n, H]
  }
}

bool Lane::cuts_at(Moment when) const {
  if (prefix_ && when < end_->when) return false;  // done when the prefix was made
  const auto due = [&](const Cut& cut) { return cut.when() == when; };
  return std::any_of(stages_.begin(), stages_.end(), [&](const Stage& stage) {
    return std::any_of(stage.cuts.begin(), stage.cuts.end(), due);
  });
}

bool Lane::due(Moment when) const {
  return (end_ && when == end_->when) || cuts_at(when);
}

at::Tensor Lane::pass(Moment when, at::Tensor hidden) {
  if (end_ && when == end_->when) {
    if (prefix_)
      hidden = at::cat({prefix_->hidden, hidden});
    else
      leave_prefix(hidden);
    joined_ = true;
  }
  if (!cuts_at(when)) return hidden;
  for (Stage& stage : stages_)
    for (const Cut& cut : stage.cuts)
      if (cut.when() == when) hidden = cut_once(stage, cut, hidden);
  return hidden;
}

void Lane::finish() {
  if (end_ && !prefix_ && end_->when == Moment::before(layers())) leave_prefix({});
  sequence_.kept = living_->source;
  std::sort(sequence_.kept.begin(), sequence_.kept.end());
}

// Made in one copy to the device, and once for all layers between two cuts.
const Lane::Indices& Lane::indices() {
  if (!indices_) {
    const std::vector<int64_t> visual = living_->visual_positions();
    const std::vector<int64_t> media =
        merge_indices(visual, living_->positions(sequence_.prompt.structure_rows));
    const auto made = index_tensors(
        {living_->source, visual, others(std::ssize(living_->rows), media), sequence_.prompt.question_rows},
        model_.decoder().options().device());
    indices_ = {made[0], made[1], made[2], made[3]};
  }
  return *indices_;
}

// What `stage` may look at of the images, of which `hidden` are the living tokens, those at `index`.
View Lane::encoder_view(const Stage& stage, const VisionOutput& vision, const at::Tensor& hidden,
                        const at::Tensor& index) const {
  const auto slice = [](const auto& all, size_t first, size_t count) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(first);
    return std::vector(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  View view;
  view.segments = sequence_.prompt.segments;
  view.pictures = pictures_;
  view.living = living_->source;
  view.index = index;
  view.hidden = hidden;
  view.vision_states = slice(vision.states, stage.first_state, stage.taps.vision_layers.size());
  view.vision_attention = slice(vision.attention, stage.first_attention, stage.taps.vision_attention.size());
  view.windows = vision.windows;
  if (stage.taps.shared_space) {
    view.shared_image = vision.shared;
    view.shared_question = question_.embeds;
  }
  view.boxes = sequence_.boxes;
  return view;
}

// What `stage` may look at before its cut; `hidden` are the current rows.
View Lane::view_of(const Stage& stage, const Cut& cut, const at::Tensor& hidden) {
  const Indices& at_hand = indices();
  View view = encoder_view(stage, vision_, hidden.index_select(0, at_hand.visual), at_hand.living);
  view.text_hidden = hidden.index_select(0, at_hand.text);
  view.question = at_hand.question;
  if (!stage.attention.empty()) view.attention = at::cat(stage.attention, 1);
  if (cut.ahead != Cut::Ahead::none) {
    invariant(cut.place == Cut::Place::before, "a cut reads ahead after its layer");
    const int64_t count = prompt_rows();
    const Rope all = rope(), tables = {all.cos.narrow(0, 0, count), all.sin.narrow(0, 0, count)};
    const bool rotated = cut.ahead == Cut::Ahead::with_rope;
    view.ahead = model_.decoder()
                     .last_row_attention(cut.layer, hidden.narrow(0, 0, count), rotated ? &tables : nullptr)
                     .index_select(0, at_hand.visual);
  }
  return view;
}

Selection Lane::choose(const Stage& stage, const Cut& cut, const View& view) {
  if (view.living.empty()) return {};  // nothing to choose among
  // Of several methods the last one has to meet the budget.
  Selection selection = stage.pruner->select(view, cut, &stage == last_ ? sequence_.budget : Budget());
  if (selection.scores.defined()) {
    sequence_.scores = at::zeros({view.total() + std::ssize(view.segments)});
    sequence_.scores.index_copy_(0, at::tensor(view.living, at::kLong), selection.scores);
    sequence_.scores = sequence_.scores.narrow(0, 0, view.total());  // without the class tokens
  }
  return selection;
}

// Positions count the rows that are left, from the first layer after the cut on. Every guide token stands
// right behind the prompt.
void Lane::renumber(const Cut& cut) {
  const int64_t rows = std::ssize(living_->rows);
  sequence_.position_ids = at::arange(sequence_.position_ids.size(1), at::kLong).clamp_max(rows).unsqueeze(0);
  sequence_.shift.resize(layers());
  std::fill(sequence_.shift.begin() + cut.when().layers_run, sequence_.shift.end(),
            sequence_.prompt.next_position - rows);
}

at::Tensor Lane::cut_once(Stage& stage, const Cut& cut, const at::Tensor& hidden) {
  cut_time_.start();
  const Selection selection = choose(stage, cut, view_of(stage, cut, hidden));
  // What stages with cuts to come recorded about the dropped tokens goes too.
  if (&cut == &stage.cuts.back()) stage.attention.clear();
  at::Tensor keep;
  for (Stage& other : stages_)
    for (at::Tensor& attention : other.attention) {
      if (!keep.defined()) keep = index_tensor(selection.keep, hidden.device());
      attention = attention.index_select(0, keep);
    }
  indices_.reset();
  // Behind the prompt's rows those guide tokens stay whose method cuts again.
  std::vector<int64_t> guide_rows;
  const auto leaves = [&](const Stage* guide) { return guide == &stage && &cut == &stage.cuts.back(); };
  for (int64_t i = 0; i < guides(); ++i)
    if (!leaves(guides_[i])) guide_rows.push_back(prompt_rows() + i);
  const at::Tensor stays =
      at::cat({compact(selection, cut, *living_, sequence_.cache), at::tensor(guide_rows, at::kLong)});
  std::erase_if(guides_, leaves);
  sequence_.left.push_back(visual_tokens());
  sequence_.position_ids = sequence_.position_ids.index_select(1, stays);
  if (cut.renumbers && sequence_.position_ids.size(0) == 1) renumber(cut);
  at::Tensor left = hidden.index_select(0, to_device(stays, hidden.device()));
  if (selection.features.defined())
    left.index_copy_(0, indices().visual, selection.features.to(left.options()));
  cut_time_.stop();
  return left;
}

}  // namespace glimpse
