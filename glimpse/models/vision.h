#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// What a vision encoder gives for the images of one prompt; S tokens: the N visual tokens, row-major, images
/// one after the other, then, if asked for, a class token for each image.
struct VisionOutput {
  at::Tensor embeds;                       ///< [S, Dv]: for the projector (Vlm::project)
  std::vector<at::Tensor> states;          ///< [S, Dv] each: the tapped encoder layers
  std::vector<int64_t> windows;            ///< [S]: which encoder attention window a token is in
  std::vector<VisionAttention> attention;  ///< of the blocks asked for
  at::Tensor shared;                       ///< [S, P]: in the space shared with texts, if asked for
  /// Per layer of the language model, from the first on: features [S, D] that are added to the visual tokens
  /// before it, or undefined.
  std::vector<at::Tensor> additions;
  at::Tensor structure;  ///< [Prompt::structure_rows, D]: what separates segments, or undefined

  size_t bytes() const;  ///< of its tensors
};

/// Calls visit(name, tensor) for every tensor of `vision`, a VisionOutput, those undefined included.
template <class Output, class Visit>
void for_tensors(Output& vision, const Visit& visit) {
  visit("embeds", vision.embeds);
  visit("shared", vision.shared);
  visit("structure", vision.structure);
  for (size_t i = 0; i < vision.states.size(); ++i) visit(concat("states.", i), vision.states[i]);
  for (size_t i = 0; i < vision.additions.size(); ++i) visit(concat("additions.", i), vision.additions[i]);
  for (size_t i = 0; i < vision.attention.size(); ++i) {
    visit(concat("attention.", i, ".received"), vision.attention[i].received);
    visit(concat("attention.", i, ".keys"), vision.attention[i].keys);
  }
}

/// What an encoder records on its way.
struct VisionTaps {
  std::vector<int64_t> states;  ///< layers whose output is kept
  std::vector<VisionAttentionTap> attention;
  bool shared = false;        ///< embeddings in the space shared with texts
  bool class_tokens = false;  ///< of encoders that have them

  VisionTaps() = default;
  VisionTaps(std::vector<int64_t> states_of) : states(std::move(states_of)) {}
};

/// A vision encoder on its way over the images of one prompt. It goes in steps, so that others can run in
/// between or it can be left.
class Encoding {
 public:
  virtual ~Encoding() = default;
  /// Steps that are left. A step costs about as much as a layer of the language model over the visual tokens.
  virtual int64_t steps() const = 0;
  virtual void step() = 0;
  /// Blocks that all images have been through, of an encoder that can drop tokens between two of them.
  virtual std::optional<int64_t> blocks_run() const { return std::nullopt; }
  /// What it has recorded so far.
  virtual const VisionOutput& recorded() const { fail("this encoder cannot be looked into on its way"); }
  /// From here on only these of the N tokens (ascending) go through the blocks, in their places. What is
  /// recorded and given later is zero for the others.
  virtual void keep(const std::vector<int64_t>&) { fail("this encoder cannot drop tokens on its way"); }
  /// A second one that goes on from here by itself; of an encoder that can drop tokens.
  virtual std::unique_ptr<Encoding> copy() const { fail("this encoder cannot be copied on its way"); }
  /// Bytes that such a copy holds.
  virtual size_t bytes() const { return 0; }
  /// After the last step, once.
  virtual VisionOutput finish() = 0;
};

/// The outputs for several lists of images as that for all of them, one after the other. Each part ends with
/// `class_tokens` class tokens.
VisionOutput joined(const std::vector<VisionOutput>& parts, int64_t class_tokens);

/// The blocks whose attention is asked for, of an encoder that runs `count`; an Error if there is no such
/// block.
std::vector<int64_t> tapped_blocks(const VisionTaps& taps, int64_t count);

}  // namespace glimpse
