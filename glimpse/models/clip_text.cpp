#include "glimpse/models/clip_text.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"

namespace glimpse {

namespace {

// What text_config leaves out equals the defaults of the format.
nlohmann::json part(const nlohmann::json& config, const char* name) {
  return config.contains(name) ? config.at(name) : nlohmann::json::object();
}

at::Tensor attend_causally(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  LayerCache cache;
  cache.append(k, v);
  return causal_attention(q, cache);
}

}  // namespace

ClipShape ClipText::shape_of(const nlohmann::json& config) {
  return ClipShape::read(part(config, "text_config"), {512, 2048, 12, 8});
}

ClipText ClipText::load(const nlohmann::json& config, int64_t vision_width, const Weights& weights,
                        std::unique_ptr<Tokenizer> tokenizer, at::TensorOptions options) {
  ClipText clip;
  const nlohmann::json c = part(config, "text_config");
  const ClipShape shape = shape_of(config);
  const int64_t vocabulary = clip_number(c, "vocab_size", 49408);
  check(clip_number(c, "max_position_embeddings", positions) == positions,
        "CLIP config: max_position_embeddings of the text tower is not ", positions);
  clip.eos_in_config_ = c.value("eos_token_id", int64_t{49407});

  const auto id = [&](const char* token) {
    const auto found = tokenizer->token_id(token);
    check(found && *found < vocabulary, "CLIP: the tokenizer of the text tower has no token \"", token,
          "\" below its vocabulary of ", vocabulary);
    return *found;
  };
  clip.begin_ = id("<|startoftext|>");
  clip.end_ = id("<|endoftext|>");
  check(tokenizer->size() <= vocabulary, "CLIP: the tokenizer has ", tokenizer->size(),
        " tokens, the text tower only ", vocabulary);
  clip.tokenizer_ = std::move(tokenizer);

  const ClipTensors text{weights, "text_model.", options, {}}, top{weights, "", options, {}};
  clip.token_embedding_ = text.take("embeddings.token_embedding.weight", {vocabulary, shape.hidden});
  clip.position_embedding_ = text.take("embeddings.position_embedding.weight", {positions, shape.hidden});
  for (int64_t i = 0; i < shape.layers; ++i) clip.blocks_.push_back(ClipBlock::load(text, i, shape));
  clip.final_layer_norm_ = ClipNorm::load(text, "final_layer_norm", shape);
  const int64_t width = width_of(config);
  clip.text_projection_ = top.linear("text_projection", width, shape.hidden, false);

  const ClipTensors vision{weights, "visual.vision_model.", options, {}};
  ClipShape seen;
  seen.hidden = vision_width;
  seen.norm_eps = part(config, "vision_config").value("layer_norm_eps", 1e-5);
  clip.post_layernorm_ = ClipNorm::load(vision, "post_layernorm", seen);
  clip.visual_projection_ = top.linear("visual_projection", width, vision_width, false);
  return clip;
}

std::vector<std::vector<int64_t>> ClipText::pieces(const std::string& text) const {
  std::vector<int64_t> ids = tokenizer_->encode(text, /*parse_special=*/false);
  ids.insert(ids.begin(), begin_);
  ids.push_back(end_);
  std::vector<std::vector<int64_t>> out;
  for (auto from = ids.begin(); from != ids.end();) {
    const auto to = from + std::min<std::ptrdiff_t>(positions, ids.end() - from);
    out.emplace_back(from, to);
    from = to;
  }
  return out;
}

int64_t ClipText::rows_read(const std::vector<int64_t>& piece) const {
  // Published configs say 2, which is no end token; there the largest id, the end token's, marks the row.
  const auto row = eos_in_config_ == 2 ? std::max_element(piece.begin(), piece.end())
                                       : std::find(piece.begin(), piece.end(), eos_in_config_);
  return row == piece.end() ? 1 : row - piece.begin() + 1;
}

at::Tensor ClipText::text(const std::vector<std::vector<int64_t>>& pieces) const {
  std::vector<at::Tensor> read;
  for (const std::vector<int64_t>& piece : pieces) {
    const int64_t rows = rows_read(piece);
    const at::Tensor ids = at::tensor(at::IntArrayRef(piece.data(), rows), at::kLong);
    at::Tensor x = token_embedding_.index_select(0, ids.to(token_embedding_.device()));
    x = x + position_embedding_.narrow(0, 0, rows);
    for (const ClipBlock& block : blocks_) x = block(x, attend_causally);
    read.push_back(x.narrow(0, rows - 1, 1));
  }
  return text_projection_(final_layer_norm_(at::cat(read)));
}

at::Tensor ClipText::image(const at::Tensor& states) const {
  return visual_projection_(post_layernorm_(states));
}

}  // namespace glimpse
