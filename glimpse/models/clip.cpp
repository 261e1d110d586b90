#include "glimpse/models/clip.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

ClipVit ClipVit::load(const nlohmann::json& c, int64_t last_state, const Weights& weights,
                      at::TensorOptions options, const WeightOptions& how) {
  ClipVit vit;
  // A config leaves out what equals the defaults of the format: those of ViT-B/32.
  const ClipShape shape = ClipShape::read(c, {768, 3072, 12, 12});
  const int64_t d = shape.hidden, depth = vit.depth_ = shape.layers;
  vit.patch_ = clip_number(c, "patch_size", 32);
  vit.image_size_ = clip_number(c, "image_size", 224);
  check(vit.image_size_ % vit.patch_ == 0 && vit.image_size_ <= 8192, "CLIP config: image_size ",
        vit.image_size_, " and patch_size ", vit.patch_, " do not fit together");
  const int64_t state = last_state < 0 ? depth + 1 + last_state : last_state;
  check(state >= 0 && state <= depth, "CLIP: hidden state ", last_state,
        " was asked for, but the encoder has ", depth, " layers");

  const ClipTensors from{weights, "visual.vision_model.", options, how};
  const int64_t side = vit.image_size_ / vit.patch_;
  vit.patch_embedding_.weight =
      from.take("embeddings.patch_embedding.weight", {d, 3, vit.patch_, vit.patch_}).flatten(1);
  vit.class_embedding_ = from.take("embeddings.class_embedding", {d});
  vit.position_embedding_ = from.take("embeddings.position_embedding.weight", {side * side + 1, d});
  vit.pre_layrnorm_ = ClipNorm::load(from, "pre_layrnorm", shape);
  for (int64_t i = 0; i < state; ++i) vit.blocks_.push_back(ClipBlock::load(from, i, shape));
  return vit;
}

ClipVit::Pass::Pass(const ClipVit& vit, const at::Tensor& pixel_values, VisionTaps taps)
    : vit_(vit), taps_(std::move(taps)), tapped_(tapped_blocks(taps_, vit.last_state())) {
  const Linear& embedding = vit.patch_embedding_;
  check(pixel_values.size(0) == vit.tokens(), "CLIP: ", pixel_values.size(0), " patches are no picture of ",
        vit.tokens());
  check(pixel_values.size(1) == embedding.weight.size(1), "CLIP: a patch has ", pixel_values.size(1),
        " values, expected ", embedding.weight.size(1));
  const at::Tensor patches = embedding(pixel_values.to(embedding.weight.options()));
  x_ = vit.pre_layrnorm_(at::cat({vit.class_embedding_.unsqueeze(0), patches}) + vit.position_embedding_);
  states_.resize(taps_.states.size());
  attention_.resize(tapped_.size());
  note_state();
}

void ClipVit::Pass::step() {
  x_ = vit_.blocks_[next_](x_, [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    if (std::find(tapped_.begin(), tapped_.end(), next_) != tapped_.end()) {
      // The class token's attention to its picture.
      const at::Tensor keys = k.to(at::kFloat);
      const at::Tensor paid = attention_weights(q[0].unsqueeze(0).to(at::kFloat), keys.unsqueeze(0))[0];
      const VisionAttention recorded{placed(paid.mean(0)), placed(keys.mean(1))};
      for (size_t tap = 0; tap < tapped_.size(); ++tap)
        if (tapped_[tap] == next_) attention_[tap] = recorded;
    }
    return segment_attention(q, k, v, Segments{q.size(0)});
  });
  ++next_;
  note_state();
}

void ClipVit::Pass::keep(const std::vector<int64_t>& tokens) {
  const at::Tensor stay = index_tensor(tokens, x_.device());
  const at::Tensor class_row = at::zeros({1}, stay.options());
  // What is left already, by its places, ascends as `tokens` do.
  const at::Tensor rows = places_.defined() ? at::searchsorted(places_, stay) : stay;
  x_ = x_.index_select(0, at::cat({class_row, rows + 1}));
  places_ = stay;
}

// Of rows [1 + patches left, ...] those of all patches, then, if it is wanted, that of the class token.
at::Tensor ClipVit::Pass::placed(const at::Tensor& rows) const {
  at::Tensor patches = rows.narrow(0, 1, rows.size(0) - 1);
  if (places_.defined()) {
    std::vector<int64_t> shape = rows.sizes().vec();
    shape[0] = vit_.tokens();
    patches = at::zeros(shape, rows.options()).index_copy_(0, places_, patches);
  }
  return taps_.class_tokens ? at::cat({patches, rows.narrow(0, 0, 1)}) : patches.contiguous();
}

size_t ClipVit::Pass::bytes() const {
  size_t sum = x_.nbytes();
  const auto add = [&](const at::Tensor& tensor) {
    if (tensor.defined()) sum += tensor.nbytes();
  };
  for (const at::Tensor& state : states_) add(state);
  for (const VisionAttention& attention : attention_) {
    add(attention.received);
    add(attention.keys);
  }
  return sum;
}

void ClipVit::Pass::note_state() {
  for (size_t tap = 0; tap < states_.size(); ++tap)
    if (taps_.states[tap] == next_) states_[tap] = placed(x_);
}

}  // namespace glimpse
