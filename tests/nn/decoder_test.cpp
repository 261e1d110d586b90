// A decoder block beside the same computed by libtorch's own operations, with what a family does to queries
// and keys before they are rotated.
#include "glimpse/nn/decoder.h"

#include "device.h"
#include "glimpse/nn/forward.h"
#include "glimpse/nn/ops.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

namespace {

constexpr int64_t kHidden = 32, kHeads = 4, kKvHeads = 2, kHead = 8, kRows = 6;
constexpr double kEps = 1e-6;

// Random tensors by name: the same whoever asks.
struct Named {
  std::map<std::string, at::Tensor> tensors;
  Weights weights() {
    return Weights::fresh([this](const std::string& name, at::IntArrayRef shape) {
      return tensors[name] = shape.size() == 1 ? 1 + 0.3 * at::randn(shape) : 0.2 * at::randn(shape);
    });
  }
  at::Tensor operator[](const std::string& name) const { return tensors.at(name); }
};

at::Tensor turned(const at::Tensor& x, int64_t first) {  // [rows, heads, d], from position `first` on
  const at::Tensor frequencies = at::pow(10000.0, -at::arange(0, kHead, 2, at::kFloat) / kHead);
  const at::Tensor angles =
      at::outer(at::arange(first, first + x.size(0), at::kFloat), frequencies).unsqueeze(1);
  const at::Tensor a = x.narrow(2, 0, kHead / 2), b = x.narrow(2, kHead / 2, kHead / 2);
  return at::cat({a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()}, 2);
}

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight) {
  return x * (x.square().mean(-1, true) + kEps).rsqrt() * weight;
}

}  // namespace

TEST_CASE("queries and keys go through the family's step before they are rotated") {
  at::manual_seed(5);
  Named named;
  const DecoderConfig config{kHidden, 48, 1, kHeads, kKvHeads, kHead, 20, kEps, false, true};
  int made = 0;
  const auto norms = [&](const Weights& weights, const std::string& block,
                         at::TensorOptions options) -> HeadStep {
    ++made;
    CHECK(block == "model.layers.0.");
    const at::Tensor q_norm = weights.take(block + "self_attn.q_norm.weight", {kHead}, options),
                     k_norm = weights.take(block + "self_attn.k_norm.weight", {kHead}, options);
    return [=](at::Tensor& q, at::Tensor& k) {
      q = rms_norm(q, q_norm, kEps);
      k = rms_norm(k, k_norm, kEps);
    };
  };
  const at::TensorOptions options = at::dtype(at::kFloat).device(test::test_device());
  const Decoder decoder = Decoder::load(config, named.weights(), "model.", "lm_head", options, {}, norms);
  CHECK(made == 1);

  const at::Tensor x = at::randn({kRows, kHidden});
  const auto weight = [&](const char* name) {
    return named[std::string("model.layers.0.") + name + ".weight"];
  };
  const at::Tensor n = normed(x, weight("input_layernorm"));
  const auto heads = [&](const char* name, int64_t count) {
    return n.matmul(weight(name).t()).view({kRows, count, kHead});
  };
  const at::Tensor q = turned(normed(heads("self_attn.q_proj", kHeads), weight("self_attn.q_norm")), 0),
                   k = turned(normed(heads("self_attn.k_proj", kKvHeads), weight("self_attn.k_norm")), 0),
                   v = heads("self_attn.v_proj", kKvHeads);
  const auto shared = [](const at::Tensor& t) {
    return t.repeat_interleave(kHeads / kKvHeads, 1).transpose(0, 1);
  };
  const at::Tensor scores = q.transpose(0, 1).matmul(shared(k).transpose(1, 2)) / std::sqrt(double{kHead});
  const at::Tensor future = at::ones({kRows, kRows}, at::kBool).triu(1);
  const at::Tensor mixed =
      scores.masked_fill(future, -INFINITY).softmax(2).matmul(shared(v)).transpose(0, 1).reshape({kRows, -1});
  at::Tensor expected = x + mixed.matmul(weight("self_attn.o_proj").t());
  const at::Tensor m = normed(expected, weight("post_attention_layernorm"));
  const auto times = [&](const at::Tensor& t, const char* name) { return t.matmul(weight(name).t()); };
  expected = expected + times(at::silu(times(m, "mlp.gate_proj")) * times(m, "mlp.up_proj"), "mlp.down_proj");

  // The whole prompt at once, then row by row as in decoding.
  for (const int64_t step : {kRows, int64_t{1}}) {
    KvCache cache;
    cache.layers.resize(1);
    std::vector<at::Tensor> out;
    for (int64_t first = 0; first < kRows; first += step) {
      RaggedBatch batch;
      batch.sequences = {{&cache, step}};
      batch.rope = rope_tables(at::arange(first, first + step, test::test_device()), kHead, 10000);
      out.push_back(decoder.layer(0, x.narrow(0, first, step).clone().to(options.device()), batch));
    }
    CHECK(test::difference(at::cat(out), expected) < 2e-5 * test::fp32_slack());
  }
  // The scores of a method that looks ahead at the layer see the same queries and keys.
  const Rope rope = rope_tables(at::arange(kRows, test::test_device()), kHead, 10000);
  const at::Tensor ahead = decoder.last_row_attention(0, x.to(options.device()), &rope);
  CHECK(test::difference(ahead, scores.select(1, kRows - 1).softmax(1).mean(0)) < 2e-6 * test::fp32_slack());
}
