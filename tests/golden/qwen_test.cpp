// The parts of Qwen2.5-VL that the golden data has numbers for of their own.
#include "glimpse/models/mrope.h"
#include "glimpse/models/qwen2_5_vit.h"
#include "golden/counts.h"

using namespace glimpse;
using test::difference;

TEST_CASE("window order of the vision encoder") {
  int64_t run = 0;
  for (const auto& golden : test::cases_below(test::golden_dir(), "inputs")) {
    if (!golden.has("window_index")) continue;
    INFO(golden.folder.filename().string() << " " << golden.name);
    const auto vision = read_json(golden.folder / "base/config.json").at("vision_config");
    const int merge = vision.at("spatial_merge_size"),
              window = vision.at("window_size").get<int>() / vision.at("patch_size").get<int>() / merge;
    std::vector<Grid> grids;
    for (const auto& grid : golden.info["grids_thw"]) grids.push_back({grid[0], grid[1], grid[2]});
    const VitWindows windows = vit_windows(grids, merge, window);
    CHECK(difference(windows.index, golden["window_index"]) == 0);
    std::vector<int64_t> ends = {0};
    for (const int64_t length : windows.window_lengths) ends.push_back(ends.back() + merge * merge * length);
    CHECK(ends == golden.integers("cu_window_seqlens"));
    ++run;
  }
  test::check_count("window orders", run, 5);
}

TEST_CASE("M-RoPE positions") {
  if (!std::filesystem::exists(test::golden_dir() / "rope"))
    return test::check_count("position layouts", 0, 10);
  const auto info = read_json(test::golden_dir() / "rope/rope.json");
  test::check_count("position layouts", std::ssize(info["layouts"]), 10);
  const auto arrays = load_safetensors(test::golden_dir() / "rope/rope.safetensors").tensors;
  MropeConfig config{info["special"]["img"], info["special"]["vid"], info["spatial_merge_size"],
                     info["tokens_per_second"]};
  const auto grids = [](const nlohmann::json& list, size_t first, size_t count) {
    std::vector<Grid> out;
    for (size_t i = first; i < first + count; ++i) out.push_back({list[i][0], list[i][1], list[i][2]});
    return out;
  };
  for (size_t n = 0; n < info["layouts"].size(); ++n) {
    const auto& layout = info["layouts"][n];
    INFO("layout " << n << " " << layout.dump());
    const auto get = [&](const char* key) { return arrays.at(std::to_string(n) + "." + key).to(at::kLong); };
    const at::Tensor ids = get("input_ids"), mask = get("attention_mask"), expected = get("position_ids");
    size_t used = 0;
    for (int64_t b = 0; b < ids.size(0); ++b) {
      const at::Tensor places = mask[b].nonzero().squeeze(1),
                       own = ids[b].index_select(0, places).contiguous();
      const std::vector<int64_t> tokens(own.const_data_ptr<int64_t>(),
                                        own.const_data_ptr<int64_t>() + own.numel());
      size_t images = layout["image_grid_thw"].size();
      if (ids.size(0) > 1) {  // a batch lists the images of its rows one after the other
        images = 0;
        for (size_t i = 0; i + 1 < tokens.size(); ++i)
          images += tokens[i] == info["special"]["vstart"] && tokens[i + 1] == config.image_token;
      }
      const MropePositions got =
          mrope_positions(tokens, grids(layout["image_grid_thw"], used, images),
                          grids(layout["video_grid_thw"], 0, layout["video_grid_thw"].size()),
                          layout["second_per_grid_ts"], config);
      used += images;
      CHECK(difference(got.ids, expected.select(1, b).index_select(1, places)) == 0);
      const int64_t delta = got.next - ids.size(1);
      if (ids.size(0) == 1) CHECK(delta == get("rope_deltas").flatten()[b].item<int64_t>());
    }
  }
}
