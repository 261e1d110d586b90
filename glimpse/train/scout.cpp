#include "glimpse/train/scout.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/engine/engine.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

namespace {

// The largest value of each window; values [N].
at::Tensor window_values(const at::Tensor& values, const std::vector<int64_t>& windows) {
  const int64_t count = 1 + *std::max_element(windows.begin(), windows.end());
  return at::full({count}, -1e9, values.options())
      .scatter_reduce(0, index_tensor(windows, values.device()), values, "amax");
}

// Of a scout within the encoder: windows that the boxes touch count more than others.
at::Tensor window_loss(const at::Tensor& logits, const at::Tensor& boxes,
                       const std::vector<int64_t>& windows) {
  const at::Tensor wanted = window_values(boxes.flatten(), windows);
  return at::binary_cross_entropy_with_logits(window_values(logits.flatten(), windows), wanted, 1 + wanted);
}

// How far the guessed tokens are from the projected ones, in parts of these.
at::Tensor guess_loss(const at::Tensor& guess, const at::Tensor& tokens) {
  const at::Tensor target = tokens.to(at::kFloat);
  return (guess - target).square().sum() / target.square().sum();
}

at::Tensor initial_value(const std::string& name, at::IntArrayRef shape, at::Generator generator) {
  at::Tensor value = at::zeros(shape, at::kFloat);
  if (name == "kinds") return value.normal_(0.0, 0.1, generator);
  if (name == "out_proj.bias") return value.fill_(-2.0);  // few tokens matter
  if (name.ends_with(".bias")) return value;
  if (shape.size() == 1) return value.fill_(1.0);
  double bound = std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1]));
  if (name == "guess_2.weight") bound *= 0.15;  // projected tokens are small
  return value.uniform_(-bound, bound, generator);
}

}  // namespace

TrainableScout::TrainableScout(const Vlm& model, ScoutConfig config, LessonOptions lessons,
                               const Weights& weights)
    : model_(model),
      config_(std::move(config)),
      lessons_(std::make_unique<Lessons>(model, config_.visual_layers, std::move(lessons))) {
  const BaseShape base = base_shape(model);
  const at::Device device = model.decoder().options().device();
  Scout::build(config_, Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
                 const at::Tensor value = weights.take(name, shape, at::kFloat);
                 parameters_[name] = value.detach().to(device).contiguous().clone().requires_grad_(true);
                 return value;
               }),
               base.hidden_size, base.vision_width, at::kCPU);
}

std::unique_ptr<TrainableScout> TrainableScout::create(const Vlm& model, const nlohmann::json& scout,
                                                       LessonOptions lessons, uint64_t seed) {
  const BaseShape base = base_shape(model);
  const ScoutConfig config = ScoutConfig::from_json(scout, base.vision_depth);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  // Words and projected tokens live in one space, so that equal orthonormal projections already match them.
  const int64_t rank = config.match_heads * config.match_rank, hidden = base.hidden_size;
  check(rank <= hidden, "scout config: match_heads * match_rank is ", rank, ", more than the model's width ",
        hidden);
  const at::Tensor same =
      std::get<0>(at::linalg_qr(at::empty({hidden, rank}, at::kFloat).normal_(0.0, 1.0, generator))).t() *
      1.5;
  const Weights weights = Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
    if (name == "match_q.weight") return same.contiguous();
    if (name == "match_k.weight") return at::cat({same, at::zeros({rank, shape[1] - hidden})}, 1);
    return initial_value(name, shape, generator);
  });
  return std::make_unique<TrainableScout>(model, config, std::move(lessons), weights);
}

std::unique_ptr<TrainableScout> TrainableScout::load(const Vlm& model, const std::filesystem::path& dir,
                                                     const nlohmann::json& scout, LessonOptions lessons) {
  const nlohmann::json config = read_json(dir / "config.json");
  const auto block = scout.find("encoder");
  const bool within =
      (block != scout.end() && block->is_number_integer() && *block >= 0) || !config.contains("scout");
  const std::string member = within ? "encoder_scout" : "scout";
  check(config.contains(member), dir.string(), ": holds no ", member);
  return std::make_unique<TrainableScout>(
      model, ScoutConfig::from_json(config[member], base_shape(model).vision_depth), std::move(lessons),
      Weights::open(dir / (member + ".safetensors")));
}

Scout TrainableScout::scout() const {
  const BaseShape base = base_shape(model_);
  return Scout::build(config_, Weights::from(parameters_, "the scout in training"), base.hidden_size,
                      base.vision_width, model_.decoder().options().device());
}

void TrainableScout::learn(std::span<const Example> examples, const LossOptions& options, const Take& take) {
  const Scout scout = this->scout();
  const std::vector<Lesson> lessons = lessons_->of(examples);
  std::vector<Learned> out;
  for (size_t i = 0; i < examples.size(); ++i) {
    std::vector<at::Tensor> logits, guesses, tokens;
    for (const ScoutInput& input : lessons[i].inputs) {
      logits.push_back(scout(input, &guesses.emplace_back()));
      tokens.push_back(input.visual);
    }
    ExampleLoss loss;
    loss.vip_logits = at::cat(logits).unsqueeze(0);
    loss.le = loss.dice = loss.bce = loss.loc = at::zeros({1}, loss.vip_logits.options());
    if (const at::Tensor& reference = examples[i].reference; reference.defined()) {
      const at::Tensor boxes = reference.to(loss.vip_logits.device());
      loss.dice = dice_loss(loss.vip_logits, boxes);
      loss.bce = bce_loss(loss.vip_logits, boxes);
      loss.loc = options.dice_weight * loss.dice + options.bce_weight * loss.bce;
      if (config_.in_encoder())
        loss.loc = loss.loc + 0.3 * window_loss(loss.vip_logits, boxes, lessons[i].windows);
    }
    if (lessons[i].taught.defined())
      loss.le = bce_loss(loss.vip_logits, lessons[i].taught.to(loss.vip_logits.device()));
    if (config_.in_encoder()) loss.le = loss.le + guess_loss(at::cat(guesses), at::cat(tokens));
    loss.loc = loss.loc.sum();
    loss.le = loss.le.sum();
    loss.total = options.loc_weight * loss.loc + options.distil_weight * loss.le;
    out.push_back(learned(loss));
  }
  take(out);
}

std::vector<int64_t> TrainableScout::keep(const at::Tensor& logits) const {
  return KeepRule(config_.rule).apply(logits);
}

std::shared_ptr<const Pruner> TrainableScout::pruner() const {
  return std::make_shared<ScoutPruner>(std::make_shared<Scout>(scout()), config_.rule);
}

void TrainableScout::save(const std::filesystem::path& dir, at::ScalarType dtype) const {
  std::filesystem::create_directories(dir);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : parameters_)
    tensors[name] = tensor.detach().to(at::TensorOptions(at::kCPU).dtype(dtype));
  save_safetensors(dir / concat(config_.member(), ".safetensors"), tensors, {{"format", "pt"}});
  AtomicFile config(dir / "config.json");
  config.stream() << nlohmann::json({{config_.member(), config_.to_json()}}).dump(2) << "\n";
  config.commit();
}

}  // namespace glimpse
