#include "glimpse/prune/scout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "glimpse/base/json_file.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/rotary.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

namespace {

using nlohmann::json;

constexpr double kNormEps = 1e-6;

// Sines and cosines of the words' places [t, width], at half their size: they are added to embeddings.
at::Tensor word_places(int64_t count, int64_t width, at::Device device) {
  const at::Tensor angles = at::outer(at::arange(count, at::TensorOptions(at::kFloat).device(device)),
                                      inverse_frequencies(width, 10000.0, device));
  return at::cat({angles.sin(), angles.cos()}, 1) * 0.5;
}

// Visual tokens turn by row and column, words do not.
Rope rope_of(const ScoutInput& input, int64_t head_dim, int64_t words, at::Device device) {
  const at::Tensor frequencies = inverse_frequencies(head_dim / 2, 100.0, device);
  const auto angles = [&](const std::vector<int64_t>& place) {
    return at::outer(index_tensor(place, device).to(at::kFloat), frequencies);
  };
  const at::Tensor visual = at::cat({angles(input.row), angles(input.col)}, 1);
  return rope_from_angles(at::cat({visual, at::zeros({words, visual.size(1)}, visual.options())}));
}

}  // namespace

Fields ScoutConfig::fields() {
  Fields fields;
  fields.add("width", width, "of its layers", {8, 8192})
      .add("layers", layers, "over visual tokens and words", {1, 64})
      .add("heads", heads, "of the layers' attention", {1, 256})
      .add("match_heads", match_heads, "of the match between words and visual tokens", {1, 256})
      .add("match_rank", match_rank, "width of such a head", {1, 1024})
      .add("encoder", encoder, "block of the encoder after which it chooses (-1: before the language model)",
           {-1, 1024})
      .add("guess", guess, "inner width of what guesses the projected tokens within the encoder", {8, 65536})
      .add("threshold", rule.threshold, "keep visual tokens whose probability is above this", {0, 1})
      .add("floor", rule.floor, "keep at least this part of the visual tokens", {0, 1});
  return fields;
}

ScoutConfig ScoutConfig::from_json(const json& scout, int64_t vision_depth) {
  ScoutConfig out;
  check(scout.is_object(), "scout config: expected an object");
  json rest = scout;
  const json layers = rest.contains("visual_layers") ? rest["visual_layers"] : json();
  check(layers.is_array() && !layers.empty(), "scout config: visual_layers is missing or empty");
  for (const json& layer : layers) {
    check(layer.is_number_integer(), "scout config: visual_layers holds ", layer.dump());
    out.visual_layers.push_back(layer.get<int64_t>());
    check(out.visual_layers.back() >= 0 && out.visual_layers.back() < vision_depth,
          "scout config: visual_layers names block ", out.visual_layers.back(), " but the encoder has ",
          vision_depth);
  }
  rest.erase("visual_layers");
  out.fields().from_json(rest, "scout config");
  if (out.in_encoder()) {
    check(out.encoder + 1 < vision_depth, "scout config: encoder is ", out.encoder,
          " but a block must follow and the encoder has ", vision_depth);
    for (const int64_t layer : out.visual_layers)
      check(layer <= out.encoder, "scout config: visual_layers names block ", layer,
            " but the scout chooses after block ", out.encoder);
  }
  check(out.width % out.heads == 0 && (out.width / out.heads) % 4 == 0, "scout config: width ", out.width,
        " does not divide into ", out.heads, " heads whose size is a multiple of 4");
  return out;
}

json ScoutConfig::to_json() const {
  json out = ScoutConfig(*this).fields().to_json();
  out["visual_layers"] = visual_layers;
  return out;
}

Fields ScoutRule::fields() {
  Fields fields = KeepRule::fields();
  fields.add("floor", floor, "keep at least this fraction of the visual tokens, the likeliest", {0, 1});
  return fields;
}

std::vector<int64_t> ScoutRule::apply(const at::Tensor& logits, int64_t total) const {
  std::vector<int64_t> keep = KeepRule::apply(logits);
  const int64_t least =
      std::min(part_of(total, floor), max_keep ? part_of(logits.numel(), *max_keep) : total);
  return std::ssize(keep) < least ? top_indices(logits, least) : keep;
}

std::vector<int64_t> ScoutRule::apply_to_windows(const at::Tensor& logits,
                                                 const std::vector<int64_t>& window) const {
  const at::Tensor wide = logits.cpu().contiguous();
  std::map<int64_t, float> largest;  // by window
  for (size_t i = 0; i < window.size(); ++i) {
    const float logit = wide.const_data_ptr<float>()[i];
    const auto [found, fresh] = largest.emplace(window[i], logit);
    if (!fresh) found->second = std::max(found->second, logit);
  }
  std::vector<float> values;
  std::vector<int64_t> names;
  for (const auto& [name, logit] : largest) {
    names.push_back(name);
    values.push_back(logit);
  }
  std::set<int64_t> kept;
  for (const int64_t index : apply(at::tensor(values), std::ssize(values))) kept.insert(names[index]);
  std::vector<int64_t> keep;
  for (size_t i = 0; i < window.size(); ++i)
    if (kept.contains(window[i])) keep.push_back(static_cast<int64_t>(i));
  return keep;
}

Scout Scout::build(const ScoutConfig& c, const Weights& weights, int64_t hidden_size, int64_t vision_width,
                   at::Device device) {
  Scout scout;
  scout.config_ = c;
  scout.hidden_size_ = hidden_size;
  scout.vision_width_ = vision_width;
  const at::TensorOptions options = at::TensorOptions(at::kFloat).device(device);
  const auto norm = [&](const std::string& name, int64_t size) {
    return weights.take(name + ".weight", {size}, options);
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias = true) {
    Linear layer{weights.take(name + ".weight", {out, in}, options), {}};
    if (bias) layer.bias = weights.take(name + ".bias", {out}, options);
    return layer;
  };
  const auto taps = std::ssize(c.visual_layers);
  if (c.in_encoder()) {
    scout.guess_0_ = linear("guess_0", c.guess, taps * vision_width);
    scout.guess_2_ = linear("guess_2", hidden_size, c.guess);
  }
  scout.visual_norm_ = norm("visual_norm", hidden_size);
  scout.text_norm_ = norm("text_norm", hidden_size);
  for (int64_t i = 0; i < taps; ++i) scout.tap_norms_.push_back(norm(concat("tap_norms.", i), vision_width));
  scout.visual_proj_ = linear("visual_proj", c.width, hidden_size);
  scout.tap_proj_ = linear("tap_proj", c.width, taps * vision_width);
  scout.text_proj_ = linear("text_proj", c.width, hidden_size);
  scout.match_q_ = linear("match_q", c.match_heads * c.match_rank, hidden_size);
  scout.match_k_ = linear("match_k", c.match_heads * c.match_rank, hidden_size + taps * vision_width);
  scout.match_gate_ = linear("match_gate", c.match_heads, hidden_size);
  scout.match_proj_ = linear("match_proj", c.width, 2 * c.match_heads);
  scout.match_out_ = linear("match_out", 1, 2 * c.match_heads);
  scout.kinds_ = weights.take("kinds", {2, c.width}, options);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string p = concat("layers.", i, ".");
    scout.layers_.push_back(
        {norm(p + "norm1", c.width), norm(p + "norm2", c.width),
         linear(p + "qkv_proj", 3 * c.width, c.width, false), linear(p + "o_proj", c.width, c.width),
         linear(p + "gate_proj", 2 * c.width, c.width), linear(p + "up_proj", 2 * c.width, c.width),
         linear(p + "down_proj", c.width, 2 * c.width)});
  }
  scout.norm_ = norm("norm", c.width);
  scout.out_proj_ = linear("out_proj", 1, c.width);
  weights.expect_all_taken();
  return scout;
}

std::shared_ptr<const Scout> Scout::load(const std::filesystem::path& dir, const json& config,
                                         const std::string& member, int64_t hidden_size, int64_t vision_width,
                                         int64_t vision_depth, at::Device device) {
  if (!config.contains(member)) return nullptr;
  const ScoutConfig shape = ScoutConfig::from_json(config[member], vision_depth);
  check(shape.member() == member, (dir / "config.json").string(), ": ", member, " has encoder ",
        shape.encoder, ", which belongs to a ", shape.member());
  return std::make_shared<const Scout>(
      build(shape, Weights::open(dir / (member + ".safetensors")), hidden_size, vision_width, device));
}

at::Tensor Scout::match(const at::Tensor& visual, const at::Tensor& words) const {
  const int64_t heads = config_.match_heads, rank = config_.match_rank;
  const auto split = [&](const at::Tensor& x) { return x.view({x.size(0), heads, rank}).transpose(0, 1); };
  const at::Tensor scores =  // [heads, T, n]
      at::bmm(split(match_q_(words)), split(match_k_(visual)).transpose(1, 2)) /
      std::sqrt(static_cast<double>(rank));
  const at::Tensor weights = match_gate_(words).t().softmax(1);  // [heads, T]: which words count
  return at::cat({scores.amax(1), at::bmm(weights.unsqueeze(1), scores).squeeze(1)}).t();
}

at::Tensor Scout::operator()(const ScoutInput& input, at::Tensor* guess) const {
  const int64_t n = std::ssize(input.row), t = input.words.size(0), heads = config_.heads;
  const at::Device device = visual_norm_.device();
  const auto norm = [](const at::Tensor& x, const at::Tensor& weight) {
    return rms_norm(x.to(at::kFloat), weight, kNormEps);
  };
  std::vector<at::Tensor> states;
  for (size_t i = 0; i < input.taps.size(); ++i) states.push_back(norm(input.taps[i], tap_norms_[i]));
  const at::Tensor taps = at::cat(states, 1);
  const at::Tensor tokens = config_.in_encoder() ? guess_2_(at::silu(guess_0_(taps))) : input.visual;
  if (guess) *guess = tokens;
  const at::Tensor visual = norm(tokens, visual_norm_), words = norm(input.words, text_norm_);
  const at::Tensor matched = match(at::cat({visual, taps}, 1), words).contiguous();
  at::Tensor x = at::cat({visual_proj_(visual) + tap_proj_(taps) + kinds_[0] + match_proj_(matched),
                          text_proj_(words) + word_places(t, config_.width, device) + kinds_[1]});
  const Rope rope = rope_of(input, config_.width / heads, t, device);
  const Segments together{n + t};
  for (const Layer& layer : layers_) {
    const auto qkv = layer.qkv_proj(rms_norm(x, layer.norm1, kNormEps)).view({n + t, 3, heads, -1}).unbind(1);
    const at::Tensor q = apply_rope(qkv[0].contiguous(), rope), k = apply_rope(qkv[1].contiguous(), rope);
    x = x + layer.o_proj(segment_attention(q, k, qkv[2].contiguous(), together));
    const auto [gate, up] = linears(rms_norm(x, layer.norm2, kNormEps), layer.gate_proj, layer.up_proj);
    x = x + layer.down_proj(silu_mul(gate, up));
  }
  return (out_proj_(rms_norm(x.narrow(0, 0, n).contiguous(), norm_, kNormEps)) + match_out_(matched))
      .squeeze(1);
}

double Scout::operations(double n, double t) const {
  const auto product = [](double rows, double in, double out) { return 2 * rows * in * out; };
  const auto hidden = static_cast<double>(hidden_size_), width = static_cast<double>(config_.width),
             seen = static_cast<double>(vision_width_ * std::ssize(config_.visual_layers)),
             rank = static_cast<double>(config_.match_heads * config_.match_rank),
             heads = static_cast<double>(config_.match_heads);
  const double in = product(n, hidden + seen, width) + product(t, hidden, width) +
                    product(n, hidden + seen, rank) + product(t, hidden, rank + heads) +
                    2 * n * t * (rank + heads) + product(n, 2 * heads, width + 1);
  const double guess =
      config_.in_encoder() ? product(n, seen + hidden, static_cast<double>(config_.guess)) : 0;
  const double rows = n + t, layer = product(rows, width, 4 * width) + 4 * rows * rows * width +
                                     3 * product(rows, width, 2 * width);
  return in + guess + static_cast<double>(config_.layers) * layer + product(n, width, 1);
}

std::vector<ScoutInput> scout_inputs(const View& view) {
  check(view.question.numel() > 0, "scout: the prompt asks nothing");
  const at::Tensor words = view.text_hidden.index_select(0, view.question);
  const std::vector<TokenPlace> places = view.places();
  std::vector<ScoutInput> inputs;
  for (size_t first = 0, end = 0; first < places.size(); first = end) {
    ScoutInput input{{}, {}, {}, {}, words};
    for (; end < places.size() && places[end].segment == places[first].segment; ++end) {
      input.row.push_back(places[end].row);
      input.col.push_back(places[end].col);
    }
    const auto from = static_cast<int64_t>(first), count = static_cast<int64_t>(end - first);
    if (view.hidden.defined()) input.visual = view.hidden.narrow(0, from, count);
    for (const at::Tensor& state : view.vision_states)
      input.taps.push_back(state.index_select(0, view.index.narrow(0, from, count)));
    inputs.push_back(std::move(input));
  }
  return inputs;
}

namespace {

// The best windows that a budget has room for, at least one.
std::vector<int64_t> windows_within(const at::Tensor& logits, const std::vector<int64_t>& window,
                                    int64_t room) {
  std::vector<int64_t> best;
  ScoutRule rule;
  rule.threshold = 1;  // so many of the best
  rule.floor = 0;
  const int64_t count = std::ssize(std::set<int64_t>(window.begin(), window.end()));
  for (int64_t windows = 1; windows <= count; ++windows) {
    rule.min_keep = windows;
    std::vector<int64_t> keep = rule.apply_to_windows(logits, window);
    if (!best.empty() && std::ssize(keep) > room) break;
    best = std::move(keep);
  }
  return best;
}

}  // namespace

json ScoutPruner::settings() const {
  json out = ScoutRule(rule_).fields().to_json();
  out["encoder"] = scout_->config().encoder;
  return out;
}

std::vector<Cut> ScoutPruner::cuts() const {
  if (scout_->config().in_encoder()) return {{Cut::Place::within, scout_->config().encoder}};
  return {{Cut::Place::before, 0}};
}

Selection ScoutPruner::select(const View& view, const Cut&, const Budget& budget) const {
  std::vector<at::Tensor> logits;
  for (const ScoutInput& input : scout_inputs(view)) logits.push_back((*scout_)(input));
  const at::Tensor decisive = at::cat(logits).cpu();
  Selection out;
  out.scores = decisive.sigmoid();
  const auto room = budget.of(view.total());
  const std::vector<int64_t> corners = rule_.corners(view);
  if (!scout_->config().in_encoder()) {
    out.keep = room ? top_tokens(view, decisive, budget, 0)
                    : merge_indices(rule_.apply(decisive, view.total()), corners);
    return out;
  }
  const std::vector<int64_t> units = encoder_units(view);
  for (const int64_t corner : corners) decisive[corner] = std::numeric_limits<float>::max();
  out.keep = room ? windows_within(decisive, units, *room) : rule_.apply_to_windows(decisive, units);
  return out;
}

double ScoutPruner::operations(const Cut&, const CutSizes& sizes) const {
  constexpr double words = 12;  // of a question: few beside the visual tokens
  return scout_->operations(static_cast<double>(sizes.living), words);
}

}  // namespace glimpse
