// Names, positions and window order.
#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/models/qwen2_5_vl.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Ids = std::vector<int64_t>;

namespace {

constexpr int64_t kImage = 90, kVideo = 91;
const MropeConfig kMrope = {kImage, kVideo, 2, 2.0};

Ids integers(const at::Tensor& t) {
  const at::Tensor own = t.contiguous();
  return {own.const_data_ptr<int64_t>(), own.const_data_ptr<int64_t>() + own.numel()};
}

}  // namespace

TEST_CASE("both published layouts give the same names") {
  const auto name = Qwen25Vl::canonical_name;
  for (const char* given :
       {"model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight",
        "language_model.layers.3.mlp.up_proj.weight"})
    CHECK(name(given) == "model.layers.3.mlp.up_proj.weight");
  for (const char* given : {"visual.blocks.0.attn.qkv.bias", "model.visual.blocks.0.attn.qkv.bias"})
    CHECK(name(given) == "visual.blocks.0.attn.qkv.bias");
  CHECK(name("lm_head.weight") == "lm_head.weight");
  CHECK(name("model.language_model.norm.weight") == "model.norm.weight");
  CHECK(name("model.visualx") == "model.visualx");
  CHECK(name("") == "");
}

TEST_CASE("positions of text, an image and a video") {
  // 2 text, image of 2 x 3 tokens, 1 text, video of 2 frames of 1 x 2 tokens, 1 text
  Ids ids = {1, 2};
  ids.insert(ids.end(), 6, kImage);
  ids.push_back(3);
  ids.insert(ids.end(), 4, kVideo);
  ids.push_back(4);
  const MropePositions got = mrope_positions(ids, {{1, 4, 6}}, {{2, 2, 4}}, {1.5}, kMrope);
  CHECK(integers(got.ids[0]) == Ids{0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 9, 9, 10});
  CHECK(integers(got.ids[1]) == Ids{0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 10});
  CHECK(integers(got.ids[2]) == Ids{0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 10});
  CHECK(got.next == 11);
}

TEST_CASE("positions: errors") {
  const auto positions = [](Ids ids, std::vector<Grid> images, std::vector<Grid> videos = {},
                            std::vector<double> seconds = {}) {
    return mrope_positions(ids, images, videos, seconds, kMrope);
  };
  CHECK_THROWS_WITH_AS(positions({1, kImage}, {}), "prompt: more image places than the 0 given", Error);
  CHECK_THROWS_WITH_AS(positions({kVideo}, {}), "prompt: more video places than the 0 given", Error);
  CHECK_THROWS_WITH_AS(positions({kImage, 1}, {{1, 2, 4}}),
                       "prompt: image 1 needs 2 visual tokens, but the ids hold fewer at place 0", Error);
  CHECK_THROWS_WITH_AS(positions({1, kImage}, {{1, 4, 4}}), doctest::Contains("needs 4 visual tokens"),
                       Error);
  CHECK_THROWS_WITH_AS(positions({1, 2}, {{1, 2, 2}}),
                       doctest::Contains("1 images were given but it has 0 places"), Error);
  CHECK_THROWS_AS(positions({kImage, kImage}, {{1, 2, 2}}), Error);
  CHECK_THROWS_AS(positions({1}, {}, {{1, 2, 2}}, {1}), Error);
  CHECK_THROWS_WITH_AS(positions({kVideo}, {}, {{1, 2, 2}}), doctest::Contains("video"),
                       Error);  // no seconds
  CHECK(positions({}, {}).ids.numel() == 0);
}

TEST_CASE("rotary tables take each section from its component") {
  const at::Tensor positions = at::tensor({1, 2, 10, 20, 100, 200}, at::kLong).view({3, 2});
  const at::Tensor f = inverse_frequencies(8, 10000.0);
  const Rope rope = rope_from_angles(mrope_angles(positions, {1, 2, 1}, f.unsqueeze(0)));
  const int component[] = {0, 1, 1, 2};
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t pair = 0; pair < 4; ++pair) {
      const double angle = positions[component[pair]][t].item<double>() * f[pair].item<double>();
      CHECK(rope.cos[t][pair].item<double>() == doctest::Approx(std::cos(angle)).epsilon(1e-4));
      CHECK(rope.sin[t][pair].item<double>() == doctest::Approx(std::sin(angle)).epsilon(1e-4));
    }
}

TEST_CASE("window order: sorting tokens by frame, window, row and column") {
  for (const int64_t window : {1, 2, 4, 7})
    for (const std::vector<Grid>& grids : {std::vector<Grid>{{1, 2, 2}},
                                           {{1, 18, 10}},
                                           {{1, 26, 34}, {1, 2, 50}},
                                           {{3, 10, 6}},
                                           {{1, 8, 8}, {2, 6, 14}}}) {
      std::vector<std::array<int64_t, 6>> tokens;  // frame, window row, window column, row, column, token
      Ids frames;
      int64_t frame = 0;
      for (const Grid& grid : grids)
        for (int t = 0; t < grid.t; ++t, ++frame) {
          frames.push_back(grid.h / 2 * (grid.w / 2));
          for (int64_t r = 0; r < grid.h / 2; ++r)
            for (int64_t c = 0; c < grid.w / 2; ++c)
              tokens.push_back({frame, r / window, c / window, r, c, static_cast<int64_t>(tokens.size())});
        }
      std::sort(tokens.begin(), tokens.end());
      Ids order, lengths;
      for (size_t i = 0; i < tokens.size(); ++i) {
        order.push_back(tokens[i][5]);
        const bool same =
            i > 0 && std::equal(tokens[i].begin(), tokens[i].begin() + 3, tokens[i - 1].begin());
        if (!same) lengths.push_back(0);
        ++lengths.back();
      }
      const VitWindows got = vit_windows(grids, 2, window);
      CHECK(integers(got.index) == order);
      CHECK(got.window_lengths == lengths);
      CHECK(got.frame_lengths == frames);
    }
}
