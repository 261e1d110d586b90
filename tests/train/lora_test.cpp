// The low-rank branches of a small decoder: values, gradients, files.
#include "glimpse/train/lora.h"

#include <ATen/core/grad_mode.h>

#include "device.h"
#include "glimpse/io/adapter.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/nn/forward.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;

namespace {

const DecoderConfig kShape = {.hidden_size = 32,
                              .intermediate_size = 48,
                              .layers = 2,
                              .heads = 4,
                              .kv_heads = 2,
                              .head_dim = 8,
                              .vocab_size = 40,
                              .attention_bias = true};
using Tensors = std::map<std::string, at::Tensor>;

Tensors random_weights() {
  Tensors tensors;
  at::manual_seed(7);
  const Weights maker = Weights::fresh([&](const std::string& name, at::IntArrayRef shape) {
    const bool norm = name.find("norm") != std::string::npos;
    return tensors[name] = norm ? at::ones(shape) + 0.1 * at::randn(shape)
                                : at::randn(shape) / std::sqrt(static_cast<double>(shape.back()));
  });
  Decoder::load(kShape, maker, "model.", "lm_head", at::kFloat);
  return tensors;
}

Decoder decoder_of(const Tensors& tensors, at::ScalarType dtype = at::kFloat) {
  return Decoder::load(kShape, Weights::from(tensors, "memory"), "model.", "lm_head",
                       at::dtype(dtype).device(test_device()));
}

/// [T, V] of a fixed sequence.
at::Tensor logits(const Decoder& decoder) {
  constexpr int64_t kRows = 9;
  KvCache cache(kShape.layers);
  const at::Tensor angles =
      at::arange(kRows, at::kFloat).unsqueeze(1) * inverse_frequencies(kShape.head_dim, 1e4);
  const RaggedBatch batch{{{&cache, kRows}}, rope_from_angles(angles.to(test_device()))};
  const at::Tensor x = decoder.embed(at::arange(kRows, test_device()) * 3 % kShape.vocab_size);
  return decoder.logits(Forward(decoder, x, batch).run());
}

/// A fresh adapter whose B matrices are not zero.
LoraAdapter random_adapter(Decoder& decoder,
                           const LoraOptions& options = {.r = 3, .alpha = 6, .dropout = 0}) {
  LoraAdapter adapter = LoraAdapter::fresh(decoder, options, 1);
  at::manual_seed(8);
  const at::NoGradGuard no_grad;
  for (auto& [name, leaf] : adapter.parameters())
    if (name.ends_with("lora_B.weight")) at::Tensor(leaf).normal_(0, 0.2);
  return adapter;
}

double furthest(const at::Tensor& a, const at::Tensor& b) {
  return (a.cpu() - b.cpu()).abs().max().item<double>();
}

}  // namespace

TEST_CASE("a fresh adapter has PEFT's initial values, decided by the seed, and changes no logit") {
  const Tensors weights = random_weights();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Decoder decoder = decoder_of(weights, dtype);
    const at::Tensor base = logits(decoder);
    const LoraAdapter adapter = LoraAdapter::fresh(decoder, {}, 5), same = LoraAdapter::fresh(decoder, {}, 5),
                      other = LoraAdapter::fresh(decoder, {}, 6);
    REQUIRE(adapter.parameters().size() == 2 * 7 * 2);
    for (const auto& [name, leaf] : adapter.parameters()) {
      CAPTURE(name);
      CHECK((leaf.requires_grad() && leaf.scalar_type() == at::kFloat));
      CHECK(at::equal(leaf, same.parameters().at(name)));
      const bool is_a = name.ends_with(".lora_A.weight");
      CHECK(leaf.size(is_a ? 0 : 1) == 32);
      if (!is_a) {
        CHECK(leaf.abs().max().item<float>() == 0);
        continue;
      }
      CHECK(!at::equal(leaf, other.parameters().at(name)));
      const double bound = 1 / std::sqrt(static_cast<double>(leaf.size(1)));
      CHECK(leaf.abs().max().item<double>() <= bound);
      CHECK(leaf.abs().max().item<double>() > 0.95 * bound);
      CHECK(leaf.std().item<double>() == doctest::Approx(bound / std::sqrt(3.)).epsilon(0.1));
    }
    CHECK(adapter.parameters().contains("model.layers.1.mlp.down_proj.lora_A.weight"));
    adapter.attach(decoder);
    const at::NoGradGuard no_grad;  // as the base ran: autograd takes other kernels
    CHECK(at::equal(logits(decoder), base));
  }
}

TEST_CASE("a branch is the same as its product added to the weight") {
  const Tensors weights = random_weights();
  Decoder decoder = decoder_of(weights);
  const at::Tensor base = logits(decoder);
  const LoraAdapter adapter =
      random_adapter(decoder, {.r = 3, .alpha = 7, .dropout = 0.5, .targets = {"q_proj", "mlp.up_proj"}});
  const Tensors leaves = adapter.parameters();
  CHECK(leaves.size() == 8);
  Tensors merged = weights;
  for (int l = 0; l < 2; ++l)
    for (const char* name : {"self_attn.q_proj", "mlp.up_proj"}) {
      const std::string module = concat("model.layers.", l, ".", name);
      merged[module + ".weight"] = weights.at(module + ".weight") +
                                   7.0 / 3 *
                                       at::matmul(leaves.at(module + ".lora_B.weight").detach().cpu(),
                                                  leaves.at(module + ".lora_A.weight").detach().cpu());
    }
  const at::Tensor expected = logits(decoder_of(merged));
  CHECK(furthest(expected, base) > 0.1);
  adapter.attach(decoder);
  {
    const at::NoGradGuard no_grad;  // so nothing is dropped
    CHECK(furthest(logits(decoder), expected) < 1e-5);
  }
  LoraAdapter::detach(decoder);
  CHECK(at::equal(logits(decoder), base));
}

TEST_CASE("gradients are those of finite differences, in float32 over a bf16 base too") {
  const Tensors weights = random_weights();
  at::manual_seed(3);
  const at::Tensor direction = at::randn({9, kShape.vocab_size}).to(test_device()) / 9;
  std::map<std::string, at::Tensor> exact;
  {
    Decoder decoder = decoder_of(weights);
    const LoraAdapter adapter = random_adapter(decoder);
    adapter.attach(decoder);
    const auto loss = [&] { return (logits(decoder) * direction).to(at::kDouble).sum(); };
    loss().backward();
    for (const auto& [name, leaf] : adapter.parameters()) {
      CAPTURE(name);
      REQUIRE(leaf.grad().defined());
      exact[name] = leaf.grad().clone();
      // Along its own gradient the loss grows by the gradient's length.
      const double length = exact[name].norm().item<double>();
      CHECK(length > 1e-3);
      const at::NoGradGuard no_grad;
      const at::Tensor value = leaf.clone(), step = exact[name] / length;
      const auto at_offset = [&](double offset) {
        at::Tensor(leaf).copy_(value + step * offset);
        return loss().item<double>();
      };
      const double difference = (at_offset(0.01) - at_offset(-0.01)) / 0.02;
      at::Tensor(leaf).copy_(value);
      CHECK(difference == doctest::Approx(length).epsilon(0.01));
    }
  }
  Decoder decoder = decoder_of(weights, at::kBFloat16);
  const LoraAdapter adapter = random_adapter(decoder);
  adapter.attach(decoder);
  (logits(decoder) * direction).sum().backward();
  double difference = 0, size = 0;
  for (const auto& [name, leaf] : adapter.parameters()) {
    CHECK((leaf.grad().scalar_type() == at::kFloat));
    difference += (leaf.grad() - exact[name]).square().sum().item<double>();
    size += exact[name].square().sum().item<double>();
  }
  CHECK(std::sqrt(difference / size) < 0.04);  // 0.026 to 0.033, as the CPU rounds bf16 products
}

TEST_CASE("dropout acts on the branch alone, and only where gradients are recorded") {
  at::manual_seed(1);
  const auto lora = std::make_shared<Lora>(Lora{at::randn({2, 8}), at::randn({5, 2}), 1.5, 0.25});
  const Linear layer{at::randn({5, 8}), at::randn({5}), lora};
  const at::Tensor x = at::randn({4, 8}), base = at::linear(x, layer.weight, layer.bias);
  const at::Tensor branch = 1.5 * at::linear(at::linear(x, lora->a), lora->b);
  {
    const at::NoGradGuard no_grad;
    CHECK(at::allclose(layer(x), base + branch, 1e-5, 1e-5));
  }
  at::Tensor sum = at::zeros_like(base), first = layer(x);
  CHECK(!at::allclose(first, layer(x), 1e-3, 1e-3));
  for (int i = 0; i < 4000; ++i) sum += layer(x);
  CHECK(furthest(sum / 4000, base + branch) < 0.05 * branch.abs().max().item<double>());
  at::manual_seed(9);
  first = layer(x);
  at::manual_seed(9);
  CHECK(at::equal(layer(x), first));
}

TEST_CASE("a saved adapter is loaded to be trained further, and merges to the same model") {
  const Scratch scratch;
  const Tensors weights = random_weights();
  Decoder decoder = decoder_of(weights);
  const LoraAdapter adapter = random_adapter(decoder);
  adapter.save(scratch / "adapter", "some/model");
  adapter.save(scratch / "adapter");  // over the first one
  LoraAdapter again = LoraAdapter::load(decoder, scratch / "adapter", 0);
  const Tensors before = adapter.parameters(), after = again.parameters();
  REQUIRE(after.size() == before.size());
  for (const auto& [name, leaf] : before) {
    CHECK(at::equal(after.at(name), leaf));
    CHECK(after.at(name).requires_grad());
  }
  const at::NoGradGuard no_grad;
  adapter.attach(decoder);
  const at::Tensor expected = logits(decoder);
  again.attach(decoder);
  CHECK(at::equal(logits(decoder), expected));
  // What is trained does not change the file that it came from.
  for (auto& [name, leaf] : after) at::Tensor(leaf).fill_(1);
  CHECK(at::equal(LoraAdapter::load(decoder, scratch / "adapter", 0).parameters().begin()->second,
                  before.begin()->second));

  save_safetensors(scratch / "model.safetensors", weights);
  Weights merged = Weights::open(scratch / "model.safetensors");
  merged.merge_adapter(scratch / "adapter");
  const Decoder plain =
      Decoder::load(kShape, merged, "model.", "lm_head", at::dtype(at::kFloat).device(test_device()));
  CHECK(furthest(logits(plain), expected) < 1e-5);
}

TEST_CASE("adapters and targets that do not fit the decoder are errors") {
  const Scratch scratch;
  Decoder decoder = decoder_of(random_weights());
  const auto fresh = [&](const std::vector<std::string>& targets) {
    return error_of([&] { LoraAdapter::fresh(decoder, {.targets = targets}, 1); });
  };
  CHECK(fresh({"o_proj", "layers.1.mlp.up_proj"}) == "");
  check_mentions(fresh({"q_proj", "proj"}), "is called 'proj'");
  check_mentions(fresh({"lm_head"}), "'lm_head'");
  check_mentions(fresh({""}), "lora_targets");
  check_mentions(fresh({}), "expected at least one");

  const at::Tensor a = at::ones({2, 32}), b = at::ones({32, 2});
  const auto load = [&](const std::string& module, const at::Tensor& up, const Weights::Rename& rename = {}) {
    save_adapter(scratch / "a", {{module, {a, up, 1.0, false}}});
    return error_of([&] { LoraAdapter::load(decoder, scratch / "a", 0, rename); });
  };
  CHECK(load("model.layers.0.self_attn.q_proj", b) == "");
  check_mentions(load("model.layers.2.self_attn.q_proj", b),
                 "'model.layers.2.self_attn.q_proj', which is no");
  check_mentions(load("visual.blocks.0.mlp.up_proj", b), "which is no linear layer");
  check_mentions(load("model.layers.0.self_attn.k_proj", b),
                 "of shape [32, 32], but it is of shape [16, 32]");
  const auto shorter = [](std::string_view name) { return std::string(name.substr(4)); };
  CHECK(load("new.model.layers.0.self_attn.q_proj", b, shorter) == "");
  check_mentions(error_of([&] { LoraAdapter::load(decoder, kData / "adapter_rich", 0); }), "merge it");
}
