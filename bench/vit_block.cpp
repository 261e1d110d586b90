#include "bench/vit_block.h"

#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/rotary.h"

namespace glimpse::bench {

namespace {

constexpr double kEps = 1e-6;

at::Tensor random(at::IntArrayRef sizes) {
  return at::randn(sizes).mul_(0.02).to(at::kBFloat16);
}

struct Block {
  at::Tensor norm;
  Linear qkv, proj, gate, up, down;

  explicit Block(const VisionShape& v) : norm(at::ones({v.hidden}, at::kBFloat16)) {
    const auto linear = [](int64_t out, int64_t in) { return Linear{random({out, in}), random({out})}; };
    qkv = linear(3 * v.hidden, v.hidden);
    proj = linear(v.hidden, v.hidden);
    gate = linear(v.intermediate, v.hidden);
    up = linear(v.intermediate, v.hidden);
    down = linear(v.hidden, v.intermediate);
  }

  template <class Attend>
  at::Tensor operator()(at::Tensor x, int64_t heads, const Rope& rope, const Attend& attend) const {
    const at::Tensor parts = qkv(rms_norm(x, norm, kEps)).view({x.size(0), 3, heads, -1});
    const at::Tensor q = apply_rope(parts.select(1, 0).contiguous(), rope);
    const at::Tensor k = apply_rope(parts.select(1, 1).contiguous(), rope);
    const at::Tensor mixed = proj(attend(q, k, parts.select(1, 2).contiguous()));
    const at::Tensor n = add_rms_norm(x, mixed, norm, kEps);
    return x + down(silu_mul(gate(n), up(n)));
  }
};

}  // namespace

void time_vit_block(const VisionShape& v, const Grid& grid, int rounds, const Limits& limits, Rows& rows) {
  const int64_t patches = int64_t{grid.t} * grid.h * grid.w, head = v.hidden / v.heads;
  std::vector<int64_t> lengths = v.windows(grid);
  std::vector<at::Tensor> ids;
  for (size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] *= v.merge * v.merge;
    ids.push_back(at::full({lengths[i]}, static_cast<int64_t>(i), at::kLong));
  }
  const at::Tensor window = at::cat(ids), mask = window.unsqueeze(0) == window.unsqueeze(1);
  const Block block(v);
  const at::Tensor x = random({patches, v.hidden});
  const Rope rope = rope_from_angles(at::rand({patches, head / 2}));

  const auto windowed = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& value) {
    return segment_attention(q, k, value, lengths);
  };
  const auto masked = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& value) {
    const auto batch = [](const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
    const at::Tensor out = at::scaled_dot_product_attention(batch(q), batch(k), batch(value), mask);
    return out.squeeze(0).transpose(0, 1).reshape({patches, -1});
  };

  const at::Tensor q = random({patches, v.heads, head}), k = random({patches, v.heads, head});
  const at::Tensor value = random({patches, v.heads, head});
  const double far = (windowed(q, k, value) - masked(q, k, value)).abs().max().item<double>();
  check(far < 1e-3, "windowed and masked attention differ by ", far);

  Samples attention[2], layer[2];
  const auto timed = [](Samples& samples, const auto& run) {
    const Timer timer;
    run();
    samples.add(timer.ms());
  };
  for (int round = 0; round < rounds; ++round) {
    timed(attention[0], [&] { return windowed(q, k, value); });
    timed(attention[1], [&] { return masked(q, k, value); });
    timed(layer[0], [&] { return block(x.clone(), v.heads, rope, windowed); });
    timed(layer[1], [&] { return block(x.clone(), v.heads, rope, masked); });
  }
  say(concat("vision block: ", layer[0].best(), " ms, masked ", layer[1].best(), " ms"));
  const double inside = segment_flops(lengths, v.hidden);
  const auto add = [&](const char* name, const Samples* samples, double flops) {
    const double ms = samples[0].best();
    rows.add({.name = name,
              .value = ms,
              .unit = "ms",
              .median = samples[0].median(),
              .share = limits.share_of_flops(flops, ms),
              .peers = {{"masked", samples[1].best()}}});
  };
  add("vit_window_attention_ms", attention, inside);
  add("vit_window_block_ms", layer, inside + vision_linears_flops(v, static_cast<double>(patches)));
}

}  // namespace glimpse::bench
