#include "glimpse/train/forward.h"

#include <ATen/core/grad_mode.h>

#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/engine/sequence.h"
#include "glimpse/nn/forward.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/train/added_features.h"

namespace glimpse {

namespace {

// One example on its way through the layers.
struct Lane {
  const Example& example;
  EmbeddedPrompt prompt;
  KvCache cache;
  at::Tensor visual;        // rows of the visual tokens
  int64_t before = 0;       // rows of its prompt in the ragged batch, the glimpse token behind them
  int64_t glimpse_row = 0;  // in the ragged batch
  int64_t answer_rows() const { return static_cast<int64_t>(example.answer.size()); }
  int64_t prompt_rows() const { return prompt.rows.size(0); }
  AddedFeatures features() const { return {prompt.vision, example.prompt.visual_rows, prompt.rows.device()}; }
  at::Tensor logits;                  // of the glimpse token, from the layer that runs
  std::vector<at::Tensor> attention;  // per selected layer [N, H]
};

// The prompts by themselves: afterwards each lane's cache holds their keys and values in every layer.
void run_prompts(const Vlm& model, std::vector<Lane>& lanes) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  RaggedBatch batch;
  std::vector<at::Tensor> rows, positions;
  for (Lane& lane : lanes) {
    batch.sequences.push_back({&lane.cache, lane.prompt_rows()});
    rows.push_back(lane.prompt.rows);
    positions.push_back(lane.example.prompt.position_ids);
  }
  batch.rope = model.rope(to_device(at::cat(positions, 1), decoder.options().device()));
  LayerHooks hooks;
  hooks.before = [&](int64_t layer, at::Tensor& x, RaggedBatch&) {
    int64_t first = 0;
    for (const Lane& lane : lanes) {
      x = lane.features().added(x, layer, first);
      first += lane.prompt_rows();
    }
  };
  Forward(decoder, at::cat(rows), batch, hooks).run();
}

ExampleLoss losses(const Lane& lane, const GlimpsePruner& pruner, const at::Tensor& token_logits,
                   const LossOptions& options) {
  const at::Device device = token_logits.device();
  const Example& example = lane.example;
  ExampleLoss out;
  out.le = at::cross_entropy_loss(token_logits, index_tensor(example.answer, device));
  View view;
  view.segments = example.prompt.segments;
  view.index = at::arange(view.total(), at::TensorOptions(at::kLong).device(device));
  view.living.resize(view.total());
  std::iota(view.living.begin(), view.living.end(), int64_t{0});
  view.vision_states = lane.prompt.vision.states;
  view.windows = lane.prompt.vision.windows;
  view.attention = at::cat(lane.attention, 1);
  out.vip_logits = pruner.logits(view);
  const at::Tensor reference = to_device(example.reference, device);
  out.dice = dice_loss(out.vip_logits, reference);
  out.bce = bce_loss(out.vip_logits, reference);
  out.loc = (options.dice_weight * out.dice + options.bce_weight * out.bce).sum();
  out.total = options.loc_weight * out.loc + options.le_weight * out.le;
  return out;
}

}  // namespace

at::Tensor dice_loss(const at::Tensor& logits, const at::Tensor& reference) {
  constexpr double smooth = 1e-6;
  const at::Tensor p = logits.sigmoid();
  return 1.0 - (2.0 * (p * reference).sum(-1) + smooth) / (p.sum(-1) + reference.sum() + smooth);
}

at::Tensor bce_loss(const at::Tensor& logits, const at::Tensor& reference) {
  return at::binary_cross_entropy_with_logits(logits, reference.expand_as(logits), {}, {},
                                              at::Reduction::None)
      .mean(-1);
}

Fields LossOptions::fields() {
  Fields fields;
  fields.add("loc_weight", loc_weight, "weight of the localisation loss", {0, 1e6})
      .add("le_weight", le_weight, "weight of the language-model loss", {0, 1e6})
      .add("dice_weight", dice_weight, "weight of Dice in the localisation loss", {0, 1e6})
      .add("bce_weight", bce_weight, "weight of binary cross entropy in the localisation loss", {0, 1e6})
      .add("distil_weight", distil_weight, "weight of a scout's cross entropy with its teacher", {0, 1e6});
  return fields;
}

std::vector<ExampleLoss> training_losses(const Vlm& model, std::shared_ptr<const GlimpseModules> modules,
                                         std::span<const Example> examples, const LossOptions& options,
                                         Backpropagation through) {
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const GlimpseConfig& config = modules->config;
  const GlimpsePruner pruner(modules, config.rule);
  const bool whole = through == Backpropagation::all_rows;

  std::vector<Lane> lanes;
  for (const Example& example : examples) {
    check(!example.answer.empty(), "training: an answer is empty");
    check(example.reference.numel() == static_cast<int64_t>(example.prompt.visual_rows.size()) &&
              example.reference.numel() > 0,
          "training: the reference mask has ", example.reference.numel(), " tokens, the images have ",
          example.prompt.visual_rows.size());
    const at::NoGradGuard no_grad;
    lanes.push_back({example,
                     embed_prompt(model, example.prompt, config.selected_visual_layers),
                     KvCache(decoder.config().layers),
                     index_tensor(example.prompt.visual_rows, device),
                     0,
                     0,
                     {},
                     {}});
  }
  if (!whole) run_prompts(model, lanes);

  // The rows with gradients: [glimpse | answer] of each example, behind its prompt if that takes part.
  RaggedBatch batch;
  std::vector<at::Tensor> rows, positions;
  std::vector<int64_t> glimpse_rows;
  int64_t first = 0;
  for (Lane& lane : lanes) {
    const Prompt& prompt = lane.example.prompt;
    const int64_t before = whole ? lane.prompt_rows() : 0, count = before + 1 + lane.answer_rows();
    if (whole) {
      rows.push_back(lane.prompt.rows);
      positions.push_back(prompt.position_ids);
    }
    rows.push_back(modules->token.added[0].unsqueeze(0));
    rows.push_back(decoder.embed(index_tensor(lane.example.answer, device)));
    // Consecutive places after the prompt, unlike in inference, where the answer takes the glimpse token's
    // own.
    const int64_t next = prompt.next_position, components = prompt.position_ids.size(0);
    positions.push_back(at::arange(next, next + 1 + lane.answer_rows(), at::kLong).expand({components, -1}));
    lane.glimpse_row = first + before;
    lane.before = before;
    glimpse_rows.push_back(lane.glimpse_row);
    batch.sequences.push_back({&lane.cache, count});
    first += count;
  }
  batch.rope = model.rope(to_device(at::cat(positions, 1), device));
  const at::Tensor glimpses = index_tensor(glimpse_rows, device);

  const auto& selected = config.selected_layers;
  const auto is_tapped = [&](int64_t layer) {
    return std::find(selected.begin(), selected.end(), layer) != selected.end();
  };
  LayerHooks hooks;
  hooks.before = [&](int64_t layer, at::Tensor& x, RaggedBatch& all) {
    const at::Tensor& added = modules->token.added[layer];
    if (layer > 0 && added.defined())
      x = x.index_add(0, glimpses, added.expand({glimpses.size(0), added.size(0)}));
    for (size_t i = 0; i < lanes.size(); ++i) {
      if (whole) x = lanes[i].features().added(x, layer, lanes[i].glimpse_row - lanes[i].before);
      all.sequences[i].taps.clear();
      if (is_tapped(layer))
        all.sequences[i].taps.push_back({lanes[i].before, &lanes[i].logits, /*all_keys=*/true});
    }
  };
  hooks.after = [&](int64_t layer, at::Tensor&, RaggedBatch&) {
    for (Lane& lane : lanes) {
      if (is_tapped(layer)) {
        const at::Tensor row = config.use_attention_logits ? lane.logits : lane.logits.log_softmax(1);
        lane.attention.push_back(row.index_select(1, lane.visual).t());
      }
      lane.cache.layers[layer] = LayerCache();  // autograd keeps what the gradients need
    }
  };
  const at::Tensor x = Forward(decoder, at::cat(rows), batch, hooks).run();

  std::vector<ExampleLoss> out;
  for (const Lane& lane : lanes) {
    // The glimpse position predicts the first answer token; the last answer token predicts nothing.
    const at::Tensor predicting = x.narrow(0, lane.glimpse_row, lane.answer_rows());
    out.push_back(losses(lane, pruner, decoder.logits(predicting), options));
  }
  return out;
}

}  // namespace glimpse
