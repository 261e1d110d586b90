#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/image/patches.h"

namespace glimpse {

/// A part of a medium (an image or a video) with a token grid of its own: an image as a whole, a tile of it,
/// or what a video shows at one time. rows x cols visual tokens, row-major, starting at `first` of the
/// prompt's N. What separates segments (newlines, timestamps) are rows of the prompt in no grid: never
/// pruned.
struct Segment {
  int64_t rows = 0, cols = 0, first = 0;
  Box area = whole_image;  ///< what the grid covers, in parts of the picture's sides (see Patches)
  int64_t medium = 0;      ///< which of the prompt's images and videos, in order of appearance
  double seconds = 0;      ///< of a video: where in it
  int64_t count() const { return rows * cols; }
};

/// Tokens of all segments.
int64_t total_tokens(std::span<const Segment> segments);
/// Images and videos that the segments, in order of these, are parts of.
int64_t media_count(std::span<const Segment> segments);

/// Where a visual token stands: its segment, and its row and column in that segment's grid. A class token
/// stands nowhere; it counts as the token in the middle.
struct TokenPlace {
  int64_t segment = 0, row = 0, col = 0;
};
/// Of a token by its source index: 0 to N - 1 are the visual tokens, N + i is the class token of segment i.
TokenPlace place_of(std::span<const Segment> segments, int64_t source);

/// A place between the steps of the forward pass, in their order.
struct Moment {
  enum class Side { within, encoder, after, before };
  int64_t layers_run = 0;     ///< layers of the language model that lie behind it
  Side side = Side::encoder;  ///< between blocks of the encoder, at its output, after the last layer run or
                              ///< before the next one
  auto operator<=>(const Moment&) const = default;

  static Moment before(int64_t layer) { return {layer, Side::before}; }
  static Moment after(int64_t layer) { return {layer + 1, Side::after}; }
};

/// Where a pruner drops visual tokens: within the encoder after one of its blocks, at the encoder's output,
/// which the projector has yet to see and to which class tokens belong, or before or after a layer of the
/// language model. Before layer 0 it sees the projected tokens.
struct Cut {
  enum class Place { within, encoder, before, after };
  Place place = Place::after;
  int64_t layer = 0;        ///< of the language model; within the encoder its block
  bool trims_cache = true;  ///< dropped tokens also leave the KV caches of the layers already run
  bool renumbers = false;  ///< plain RoPE: positions from here on count what is left. M-RoPE's stay: they say
                           ///< where in the image a token stands
  /// Before a layer: whether its pruner reads what that layer's own projections make of the last text row's
  /// attention, and whether queries and keys go through the rotary embedding for it.
  enum class Ahead { none, with_rope, without_rope } ahead = Ahead::none;
  bool reads_text = true;  ///< whether the choice may depend on the prompt's text. What does not may be
                           ///< reused for other questions about the same images

  Moment when() const {
    return place == Place::within    ? Moment{0, Moment::Side::within}
           : place == Place::encoder ? Moment()
           : place == Place::before  ? Moment::before(layer)
                                     : Moment::after(layer);
  }
};

/// One extra row after the prompt that is dropped at its pruner's last cut (method.md section 2). It sees the
/// prompt and itself; nothing sees it.
struct GuideToken {
  std::vector<at::Tensor> added;  ///< per layer: [D] added to its hidden state before the layer, or
                                  ///< undefined; added[0] is its input embedding
};

/// An encoder block whose attention is summed up, -1: the last one run.
struct VisionAttentionTap {
  int64_t block = -1;
  bool rotate_twice = false;  ///< of queries and keys that went through the rotary embedding twice (VScan)
  bool operator==(const VisionAttentionTap&) const = default;
};

/// What an encoder block's attention says about each token.
struct VisionAttention {
  at::Tensor received;  ///< [S] float32: attention paid to a token by its image's class token, or by all its
                        ///< patches on average; mean over heads and over the token's own patches
  at::Tensor keys;  ///< [S, d] float32: after the rotary embedding, mean over heads and the token's patches
};

/// What the models record for a pruner; nothing else is kept.
struct Taps {
  std::vector<int64_t> vision_layers;  ///< encoder blocks whose output is kept
  std::vector<int64_t>
      attention_layers;      ///< layers whose attention by its guide token (else the last row) is kept
  bool log_softmax = false;  ///< of those logits, over all keys
  const GuideToken* guide = nullptr;
  std::vector<VisionAttentionTap> vision_attention;
  bool shared_space = false;  ///< embeddings of image and question in the space that both share (CLIP)
  bool pictures = false;      ///< their hash
  bool boxes = false;         ///< reference boxes
};

/// What a pruner may look at: n living of N visual tokens, segment by segment. What the encoder says of
/// tokens is by source index: S is N, or N + segments where a method of the composition cuts at the encoder's
/// output.
struct View {
  std::span<const Segment> segments;
  uint64_t pictures = 0;        ///< pictures_hash() of what the encoder takes, if asked for
  std::vector<int64_t> living;  ///< [n]: source index of each living token (see place_of). At the
                                ///< encoder's output a segment's class token stands before its patches
  at::Tensor index;             ///< [n] int64: the same beside the other tensors, to pick from them
  at::Tensor hidden;            ///< [n, D]: their hidden states; [n, Dv] at the encoder's output; undefined
                                ///< within the encoder, whose states are tapped
  at::Tensor text_hidden;       ///< [T, D]: hidden states of the text rows (guide excluded), within the
                                ///< encoder their embeddings; undefined at the encoder's output
  at::Tensor question;          ///< [Q] int64: which of these rows hold the question
  std::vector<at::Tensor> vision_states;          ///< [S, Dv] each, in the order of Taps::vision_layers
  std::span<const int64_t> windows;               ///< [S]: encoder window of each token
  at::Tensor attention;                           ///< [n, layers * H] float32, layer-major
  std::vector<VisionAttention> vision_attention;  ///< in the order of Taps::vision_attention
  at::Tensor shared_image;                        ///< [S, P]: see Taps::shared_space
  at::Tensor shared_question;                     ///< [M, P]: of the M pieces of the question
  at::Tensor ahead;                         ///< [n] float32: see Cut; softmax over all rows, mean over heads
  std::span<const std::vector<Box>> boxes;  ///< reference boxes per medium, normalised; may be empty

  int64_t count() const { return std::ssize(living); }
  int64_t total() const { return total_tokens(segments); }
  /// Of the living tokens.
  std::vector<TokenPlace> places() const;
};

/// An equal budget for every method: what its last cut leaves of a prompt's N visual tokens. Empty: the
/// method's own rule.
struct Budget {
  std::optional<double> keep;    ///< fraction of all visual tokens, in (0, 1]; rounded to the nearest number,
                                 ///< at least 1
  std::optional<int64_t> count;  ///< absolute number
  std::vector<int64_t> counts;   ///< absolute number for each medium

  bool is_set() const { return keep || count || !counts.empty(); }
  /// Tokens to keep of `total`, if a budget is set.
  std::optional<int64_t> of(int64_t total) const;
  /// The same for each segment, in proportion to its tokens: of all, or of its medium where `counts` say what
  /// that keeps.
  std::optional<std::vector<int64_t>> of(std::span<const Segment> segments) const;
};

/// What stays: indices into the living tokens, ascending; at the encoder's output segment by segment but else
/// in any order, of each segment at most as many as it has visual tokens.
struct Selection {
  std::vector<int64_t> keep;
  at::Tensor features;  ///< [keep, D] new hidden states (merging), or undefined
  at::Tensor scores;    ///< [n] float32 on the CPU: probability per living token, or undefined
};

/// The sizes of a prompt at a cut, from which its work is counted.
struct CutSizes {
  int64_t visual = 0, living = 0, kept = 0;  ///< visual tokens of the prompt; before and after the cut
  int64_t width = 0;                         ///< of the language model's hidden states
  int64_t vision_head = 0;                   ///< of the encoder's attention heads; 0: not known
};

/// A pruning method. It declares when it cuts and what it reads, then purely says which tokens stay.
class Pruner {
 public:
  virtual ~Pruner() = default;
  virtual std::string name() const = 0;
  /// The method's settings, as recorded in results.
  virtual nlohmann::json settings() const = 0;
  virtual std::vector<Cut> cuts() const = 0;
  virtual Taps taps() const { return {}; }
  /// Whether it only spares work for the methods after it, which choose as well without it: what it drops
  /// depends on the question, so that it stands in the way of an image prefix.
  virtual bool is_shortcut() const { return false; }
  virtual Selection select(const View& view, const Cut& cut, const Budget& budget) const = 0;

  /// Operations of its products in select(); those of what it taps, of a guide row and of looking ahead are
  /// counted for all methods alike.
  virtual double operations(const Cut&, const CutSizes&) const { return 0; }
};

}  // namespace glimpse
