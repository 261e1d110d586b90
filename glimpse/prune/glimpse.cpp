#include "glimpse/prune/glimpse.h"

#include <algorithm>
#include <functional>

#include "glimpse/nn/ops.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

namespace {

using nlohmann::json;

// A field of the config, or `fallback` if it is absent or null.
template <class T>
T field(const json& config, const char* name, T fallback) {
  const auto found = config.find(name);
  if (found == config.end() || found->is_null()) return fallback;
  try {
    return found->get<T>();
  } catch (const json::exception&) {
    fail("pruning config: ", name, " has an unexpected value ", found->dump());
  }
}

void check_layers(const char* name, const std::vector<int64_t>& layers, int64_t end) {
  check(!layers.empty(), "pruning config: ", name, " is missing or empty");
  for (const int64_t layer : layers)
    check(layer >= 0 && layer < end, "pruning config: ", name, " names layer ", layer,
          " but the base model has ", end);
}

}  // namespace

GlimpseConfig GlimpseConfig::from_json(const json& c, const BaseShape& base) {
  GlimpseConfig out;
  check(c.contains("attn_fuse_type") && c.contains("reduce_layer"),
        "this config.json has no pruning fields (attn_fuse_type, reduce_layer, ...); give the folder of the "
        "pruning "
        "modules, not that of a base model");
  out.selected_layers = field(c, "selected_layers", std::vector<int64_t>{});
  out.reduce_layer = field<int64_t>(c, "reduce_layer", 0);
  check_layers("selected_layers", out.selected_layers, base.layers);
  check_layers("reduce_layer", {out.reduce_layer}, base.layers);
  for (const int64_t layer : out.selected_layers)
    check(layer <= out.reduce_layer, "pruning config: selected layer ", layer, " lies behind reduce_layer ",
          out.reduce_layer);
  for (const int64_t layer : out.selected_layers)
    check(std::count(out.selected_layers.begin(), out.selected_layers.end(), layer) == 1,
          "pruning config: selected_layers names layer ", layer, " twice");
  out.le_layers = field(c, "le_layers", std::vector<int64_t>{});
  if (out.le_layers.empty())
    for (int64_t l = 0; l < base.layers; ++l) out.le_layers.push_back(l);
  check_layers("le_layers", out.le_layers, base.layers);
  check(out.le_layers[0] == 0 &&
            std::is_sorted(out.le_layers.begin(), out.le_layers.end(), std::less_equal<>()),
        "pruning config: le_layers must be ascending and start with layer 0");
  const auto length = field<int64_t>(c, "le_length", 1);
  check(length == 1, "pruning config: le_length ", length, " is not supported, only 1");
  const auto norm = field<std::string>(c, "le_norm_type", "rmsnorm");
  check(norm == "rmsnorm" || norm == "layernorm", "pruning config: le_norm_type '", norm,
        "' is unknown (known: rmsnorm, layernorm)");
  out.layer_norm = norm == "layernorm";
  out.use_attention_logits = field(c, "use_attention_logits", true);
  out.attn_fuse_global = field(c, "attn_fuse_global", true);

  const auto type = field<std::string>(c, "attn_fuse_type", "");
  VipConfig& vip = out.vip;
  if (type == "AttnFuserV1") {
    vip.type = VipConfig::Type::v1;
  } else if (type == "AttnFuserV2") {
    vip.type = VipConfig::Type::v2;
  } else {
    check(type == "AttnFuserDummy", "pruning config: attn_fuse_type '", type,
          "' is unknown (known: AttnFuserV1, AttnFuserV2, AttnFuserDummy)");
    vip.type = VipConfig::Type::dummy;
  }
  const auto act = field<std::string>(c, "attn_fuse_hidden_act", "silu");
  check(act == "silu", "pruning config: attn_fuse_hidden_act '", act, "' is not supported, only silu");
  vip.attention_size = base.heads * static_cast<int64_t>(out.selected_layers.size());
  vip.visual_size = base.vision_width;
  vip.fuse_size = field<int64_t>(c, "attn_fuse_size", 256);
  vip.cond_size = field<int64_t>(c, "visual_cond_size", 512);
  vip.heads = field<int64_t>(c, "attn_fuse_num_heads", 4);
  vip.deep_supervision = field(c, "deep_supervision", false);
  vip.log_softmax_input = !out.use_attention_logits;
  if (vip.type != VipConfig::Type::dummy) {
    out.selected_visual_layers = field(c, "selected_visual_layers", std::vector<int64_t>{});
    check_layers("selected_visual_layers", out.selected_visual_layers, base.vision_depth);
    vip.layers = static_cast<int64_t>(out.selected_visual_layers.size());
  }
  if (vip.type != VipConfig::Type::v1) out.selected_visual_layers.clear();

  out.rule.threshold = field(c, "reduce_threshold", 0.5);
  check(out.rule.threshold >= 0 && out.rule.threshold <= 1, "pruning config: reduce_threshold ",
        out.rule.threshold, " is outside [0, 1]");
  out.rule.max_keep = field(c, "max_remain_ratio", -1.0);
  if (*out.rule.max_keep < 0) out.rule.max_keep.reset();
  if (c.contains("min_remain_num")) out.rule.min_keep = field<int64_t>(c, "min_remain_num", -1);
  if (out.rule.min_keep && *out.rule.min_keep < 0) out.rule.min_keep.reset();
  out.rule.anchors = field(c, "anchor_positions", std::vector<std::string>{});
  for (const char* key : {"use_ref_masks", "use_zero_masks"})
    check(!field(c, key, false), "pruning config: ", key,
          " is set; masks in the predictor's place are asked for with the method reference (--prune "
          "reference)");
  return out;
}

std::filesystem::path new_modules_file(const std::filesystem::path& dir) {
  for (const char* name : {"new_modules_gp.safetensors", "new_modules_gp.pt"})
    if (std::filesystem::exists(dir / name)) return dir / name;
  fail(dir.string(), ": neither new_modules_gp.pt nor new_modules_gp.safetensors");
}

GlimpseModules GlimpseModules::build(const GlimpseConfig& c, const Weights& weights, const BaseShape& base,
                                     at::TensorOptions options, double dropout) {
  GlimpseModules modules{c, {}, Vip::load(c.vip, weights, options.device())};
  const int64_t d = base.hidden_size, count = static_cast<int64_t>(c.le_layers.size());
  const at::TensorOptions wide = options.dtype(at::kFloat);
  const Linear le_proj{weights.take("le_proj.weight", {d, d}, wide), weights.take("le_proj.bias", {d}, wide)};
  const at::Tensor le_norm = weights.take("le_norm.weight", {d}, wide);
  const at::Tensor embeddings = weights.take("learnable_embeddings", {count, 1, d}, wide).squeeze(1);
  // e_l = norm(proj(embedding)) for every l of le_layers (method.md section 2)
  at::Tensor vectors = at::linear(embeddings, le_proj.weight, le_proj.bias);
  if (dropout > 0) vectors = at::dropout(vectors, dropout, true);
  vectors = c.layer_norm ? at::layer_norm(vectors, {d}, le_norm, weights.take("le_norm.bias", {d}, wide))
                         : rms_norm(vectors, le_norm, base.rms_norm_eps);
  vectors = vectors.to(options);
  modules.token.added.resize(base.layers);
  for (int64_t i = 0; i < count; ++i) modules.token.added[c.le_layers[i]] = vectors[i];
  // AttnFuserV2 files carry condition projections that it never uses; with no deep supervision the same holds
  // for early output projections.
  weights.expect_all_taken([&](std::string_view name) {
    return name.starts_with("attn_fuser.cond_in_projs.") && c.vip.type == VipConfig::Type::v2;
  });
  return modules;
}

std::shared_ptr<const GlimpseModules> GlimpseModules::load(const std::filesystem::path& dir,
                                                           const BaseShape& base, at::TensorOptions options) {
  const GlimpseConfig config = GlimpseConfig::from_json(read_json(dir / "config.json"), base);
  auto modules =
      std::make_shared<GlimpseModules>(build(config, Weights::open(new_modules_file(dir)), base, options));
  if (options.dtype() == at::kBFloat16) modules->vip.use_bf16();
  return modules;
}

Taps GlimpsePruner::taps() const {
  const GlimpseConfig& c = modules_->config;
  return {c.selected_visual_layers, c.selected_layers, !c.use_attention_logits, &modules_->token, {}};
}

at::Tensor GlimpsePruner::logits(const View& view) const {
  const GlimpseConfig& c = modules_->config;
  // A predictor without parameters works image by image, whatever the window setting.
  const bool by_image = c.attn_fuse_global || c.vip.type == VipConfig::Type::dummy;
  VipPlaces places;
  for (const TokenPlace& place : view.places()) {
    const int64_t token = view.living[places.row.size()];
    places.row.push_back(place.row);
    places.col.push_back(place.col);
    places.group.push_back(by_image ? place.segment : view.windows[token]);
  }
  std::vector<at::Tensor> states;
  for (const at::Tensor& state : view.vision_states) states.push_back(state.index_select(0, view.index));
  return modules_->vip(view.attention, states, places);
}

Selection GlimpsePruner::select(const View& view, const Cut&, const Budget& budget) const {
  const at::Tensor decisive = logits(view)[-1].cpu();  // the host needs to know nothing else
  Selection out;
  out.scores = decisive.sigmoid();
  out.keep = budget.of(view.total()) ? top_tokens(view, decisive, budget, 0)
                                     : merge_indices(rule_.apply(decisive), rule_.corners(view));
  return out;
}

double GlimpsePruner::operations(const Cut&, const CutSizes& sizes) const {
  return modules_->config.vip.operations(static_cast<double>(sizes.living));
}

}  // namespace glimpse
