#pragma once

#include <optional>
#include <vector>

#include "glimpse/engine/prefix_cache.h"
#include "glimpse/nn/device_timer.h"

namespace glimpse {

/// One sequence's way through the prefill: its living rows, what its pruners asked to be recorded, and its
/// image prefix, which comes from a cache or goes there. Where it comes from one, only the rows that follow
/// it run through the layers, until its end joins them with the prefix's.
class Lane {
 public:
  /// `cache` may be null; it is used if the sequence has a prefix key. From here on the prompt's patches are
  /// not needed in the sequence.
  Lane(const Vlm& model, Sequence& sequence, PrefixCache* cache);
  Lane(const Lane&) = delete;  // it refers to itself

  /// Steps of the encoder that are left; none if the prefix came from the cache.
  int64_t encoder_steps() const { return encoding_ ? encoding_->steps() : 0; }
  /// Visual tokens that are left.
  int64_t visual_tokens() const { return std::ssize(living_->source); }
  /// Runs the next one, and after the last embeds the prompt.
  void encode();
  bool is_embedded() const { return embedded_.defined(); }
  /// The embedded rows [rows(), D], once.
  at::Tensor take_rows() { return std::move(embedded_); }

  /// Rows that now run through the layers.
  int64_t rows() const { return std::ssize(living_->rows) - skipped() + guides(); }
  /// Rotary tables of these.
  Rope rope() const;
  /// Adds the encoder's features for the visual tokens to the rows [rows(), D], before the cuts that are due
  /// before this layer.
  void add_features(int64_t layer, at::Tensor rows);
  /// Adds the guide tokens' vectors, after them.
  void add_guides(int64_t layer, at::Tensor rows);
  /// These rows as a layer takes them.
  SequenceRows sequence_rows(int64_t layer);
  /// Notes what a layer that has just run leaves in the cache and the attention that was asked for.
  void after_layer(int64_t layer);

  /// Whether there is something to do to the rows then.
  bool due(Moment when) const;
  /// Does it: leaves or joins the prefix, runs the cuts on the rows `hidden`; returns those that are there
  /// then.
  at::Tensor pass(Moment when, at::Tensor hidden);

  void finish();
  /// Notes how long the cuts took, when the device has ended them.
  void note_times() { sequence_.times.prune += cut_time_.take(); }

  Sequence& sequence() const { return sequence_; }

 private:
  struct Stage {
    const Pruner* pruner;
    Taps taps;
    std::vector<Cut> cuts;
    size_t first_state = 0, first_attention = 0;
    at::Tensor logits;                  // that the layer which runs leaves: [H, keys]
    std::vector<at::Tensor> attention;  // per tapped layer [n, H]
    bool taps_layer(int64_t layer) const;
  };

  int64_t layers() const { return model_.decoder().config().layers; }
  int64_t skipped() const { return joined_ ? 0 : static_cast<int64_t>(prefix_->rows.size()); }
  void start_encoder(const std::vector<int64_t>& cut_after);
  void keep_encoder();
  void cut_within_encoder();
  at::Tensor cut_encoder(const at::Tensor& embeds);
  void resume();
  at::Tensor embed();
  void leave_prefix(const at::Tensor& hidden) const;
  bool cuts_at(Moment when) const;
  int64_t guides() const { return std::ssize(guides_); }
  int64_t prompt_rows() const { return rows() - guides(); }
  struct Indices {
    at::Tensor living;        // source indices of the living visual tokens
    at::Tensor visual, text;  // positions of these, and of the text rows
    at::Tensor question;      // places among the text rows
  };
  const Indices& indices();
  View encoder_view(const Stage& stage, const VisionOutput& vision, const at::Tensor& hidden,
                    const at::Tensor& index) const;
  View view_of(const Stage& stage, const Cut& cut, const at::Tensor& hidden);
  Selection choose(const Stage& stage, const Cut& cut, const View& view);
  void renumber(const Cut& cut);
  at::Tensor cut_once(Stage& stage, const Cut& cut, const at::Tensor& hidden);

  const Vlm& model_;
  Sequence& sequence_;
  PrefixCache* cache_;
  DeviceTimer cut_time_;
  std::vector<Stage> stages_;
  std::vector<const Stage*> guides_;  // whose guide tokens are the last rows
  const Stage* last_ = nullptr;
  VisionTaps taps_;
  uint64_t pictures_ = 0;                 // their hash, if a pruner wants it
  std::unique_ptr<Encoding> encoding_;    // until it has ended
  std::optional<int64_t> cut_block_;      // of the encoder, after which there is a cut
  std::optional<PrefixKey> encoder_key_;  // of its state there, which is to be kept
  VisionOutput vision_;
  at::Tensor embedded_;
  TextOutput question_;
  std::optional<LivingRows> living_;
  std::optional<Indices> indices_;             // of the rows as they are, once they were asked for
  std::optional<PrefixEnd> end_;               // of its image prefix, if there is use for one
  std::shared_ptr<const ImagePrefix> prefix_;  // taken from the cache
  bool joined_ = true;
};

}  // namespace glimpse
