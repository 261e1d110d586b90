#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/patches.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// How images are prepared: bounds on their size in pixels, unset: the checkpoint's own.
struct ImageBounds {
  std::optional<int64_t> min_pixels, max_pixels;
  std::string preprocessing = "own";  ///< or "reference": the published evaluation's (QwenImageOptions)

  Fields fields();
  bool reference() const { return preprocessing == "reference"; }
  /// How the files of the images must be decoded for it.
  DecodeOptions decode_options() const;
};

/// A prompt as the language model sees it.
struct Prompt {
  std::vector<int64_t> ids;          ///< [T]; every visual token has the image id
  at::Tensor position_ids;           ///< [components, T] int64 (3 for M-RoPE, 1 for RoPE)
  int64_t next_position = 0;         ///< position of the token after the prompt, in every component
  std::vector<Segment> segments;     ///< token grids, in order of appearance
  std::vector<int64_t> visual_rows;  ///< [N]: where the visual tokens stand
  /// Rows within and behind a picture that are neither text nor in a grid (newlines); the encoder gives them,
  /// no method prunes them.
  std::vector<int64_t> structure_rows;
  std::vector<Patches> patches;  ///< encoder input, one per image
  std::string question;          ///< what is asked, as a text encoder of the family's should read it
  /// [Q]: which of its text rows hold the question; of prompts made from ids those that follow the last
  /// image, or all if none do.
  std::vector<int64_t> question_rows;

  /// The rows that the encoder gives, ascending: visual tokens and structure. The others are text.
  std::vector<int64_t> media_rows() const;
};

/// A segment of an image as its prompt has it.
struct TokenGrid {
  int64_t rows = 0, cols = 0;
  Box area = whole_image;  ///< see Segment
  int64_t breaks = 0;      ///< structure rows: one behind each of so many equal runs of the tokens
};

/// How a family marks the place of an image in its ids.
struct ImagePlace {
  int64_t token = 0;     ///< the mark
  int64_t stored = 0;    ///< what Prompt::ids hold there: a token that has an embedding
  bool resizes = false;  ///< how many tokens an image has follows from ImageBounds
};

/// A prompt of images that are made of these grids, one after the other. `ids` hold one place per image or
/// already one per row of it, structure included. A grid without tokens is no segment; a segment's medium is
/// the number of its place. The positions are left to the family. Errors: an id outside the vocabulary,
/// images without places or the other way round, more tokens than `max_positions`.
Prompt widen(const std::vector<int64_t>& ids, std::vector<Patches> patches,
             const std::vector<std::vector<TokenGrid>>& grids, const ImagePlace& place, int64_t vocab_size,
             int64_t max_positions);

/// Notes that `places` of the `ids` which the prompt was made from, with one of the
/// `media_tokens` for each place, hold the question; none: what it says already.
void set_question(Prompt& prompt, const std::vector<int64_t>& ids, const std::vector<int64_t>& places,
                  std::span<const int64_t> media_tokens);

}  // namespace glimpse
