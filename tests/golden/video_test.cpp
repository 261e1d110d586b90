// What the golden data has of Qwen's videos beside whole cases: conversations, times, frames, tensor names.
#include "glimpse/image/qwen_image.h"
#include "glimpse/models/mrope.h"
#include "glimpse/models/qwen2_5_vit.h"
#include "glimpse/models/qwen_vl.h"
#include "glimpse/text/chat.h"
#include "golden/counts.h"

using namespace glimpse;
using nlohmann::json;
using test::difference;
using test::GoldenCase;

namespace {

std::filesystem::path folder() {
  return test::golden_dir() / "qwen_tiny_video";
}

// Messages as the row has them, and for each image or video how many tokens each of its places is widened to.
struct Conversation {
  std::vector<Message> messages;
  std::vector<int64_t> tokens;
};

Conversation conversation_of(const json& row, int64_t side) {
  Conversation out;
  size_t image = 0, video = 0;
  const auto tokens = [&](const json& size) {
    return size[0].get<int64_t>() / side * (size[1].get<int64_t>() / side);
  };
  for (const json& each : row["messages"]) {
    Message& message = out.messages.emplace_back(Message{each["role"], {}});
    const json parts =
        each["content"].is_string() ? json{{{"type", "text"}, {"text", each["content"]}}} : each["content"];
    for (const json& part : parts) {
      if (part["type"] == "text") {
        message.parts.push_back({Part::Kind::text, part["text"]});
      } else if (part["type"] == "image") {
        message.parts.push_back({Part::Kind::image, ""});
        out.tokens.push_back(tokens(row["images_hw"][image++]));
      } else {
        const json& clip = row["videos"][video++];
        Part& shown = message.parts.emplace_back(Part{Part::Kind::video, ""});
        if (!clip.contains("fps")) {  // one place for all of it
          out.tokens.push_back((clip["frames"].get<int64_t>() + 1) / 2 * tokens(clip["size_hw"]));
          continue;
        }
        std::vector<double> times;
        for (const json& index : clip["frame_indices"])
          times.push_back(index.get<double>() / clip["fps"].get<double>());
        if (times.size() % 2 == 1) times.push_back(times.back());
        for (size_t i = 0; i < times.size(); i += 2) {
          shown.seconds.push_back((times[i] + times[i + 1]) / 2);
          out.tokens.push_back(tokens(clip["size_hw"]));
        }
      }
    }
  }
  return out;
}

int64_t check_conversations(const std::filesystem::path& file, const QwenChat& chat,
                            const QwenChat& template_of, int64_t side) {
  if (!std::filesystem::exists(file)) return 0;
  const auto tokenizer = Tokenizer::load(std::filesystem::path(GLIMPSE_SOURCE_DIR) / "models/tiny/model");
  const int64_t image = *tokenizer->token_id("<|image_pad|>"), video = *tokenizer->token_id("<|video_pad|>");
  int64_t run = 0;
  const json prompts = read_json(file);
  for (const json& row : prompts["rows"]) {
    if (!member(row, "options").is_null()) continue;  // as no program here writes them
    INFO(row["name"]);
    const Conversation conversation = conversation_of(row, side);
    CHECK(template_of.render(conversation.messages, true) == row["rendered"]);
    std::vector<int64_t> ids;
    size_t place = 0;
    for (const int64_t id : encode_chat(*tokenizer, conversation.messages, true, chat))
      ids.insert(ids.end(), id == image || id == video ? conversation.tokens.at(place++) : 1, id);
    CHECK(ids == row["ids"].get<std::vector<int64_t>>());
    ++run;
  }
  return run;
}

}  // namespace

TEST_CASE("conversations of Qwen2.5-VL with videos") {
  test::check_count("conversations",
                    check_conversations(folder() / "chat/prompts.json", QwenChat(), QwenChat(), 28), 4);
}

TEST_CASE("conversations of Qwen3-VL, whose videos are slices behind their times") {
  const auto file = test::golden_dir() / "qwen3_vl_tiny/chat/prompts.json";
  test::check_count("conversations", check_conversations(file, QwenChat(false, true), QwenChat(false), 32),
                    9);
}

TEST_CASE("time positions at every rate, where double arithmetic would be off as well") {
  if (!std::filesystem::exists(folder())) return test::check_count("rates", 0, 1);
  int64_t run = 0, elsewhere = 0;
  const json table = read_json(folder() / "tables/sampling.json");
  for (const json& row : table["time_positions"]) {
    INFO(row.dump());
    constexpr int kSlices = 200;
    const MropeConfig config{1, 2, 2, 2};
    const MropePositions got = mrope_positions(std::vector<int64_t>(kSlices, 2), {}, {{kSlices, 2, 2}},
                                               {row["second_per_grid_t"]}, config);
    const auto* const time = got.ids.const_data_ptr<int64_t>();
    const auto expected = row["time_of_step"].get<std::vector<int64_t>>();
    CHECK(std::equal(expected.begin(), expected.end(), time));
    CHECK(time[kSlices - 1] == row["time_of_step_199"]);
    CHECK(std::accumulate(time, time + kSlices, int64_t{0}) == row["sum_0_to_199"]);
    elsewhere += row["steps_where_double_differs"].size();
    ++run;
  }
  test::check_count("rates", run, static_cast<int64_t>(table["time_positions"].size()));
  CHECK(elsewhere > 0);
}

TEST_CASE("frames of a video as the encoder takes them, and the order that it walks them in") {
  int64_t run = 0;
  for (const GoldenCase& golden : test::golden_cases(folder() / "inputs")) {
    INFO(golden.name);
    int64_t video = 0, first = 0;
    std::vector<Grid> grids;
    for (const json& part : golden.info["parts"]) {
      if (part["kind"] != "video") continue;
      const at::Tensor frames = golden[concat("frames.", video)].contiguous();
      std::vector<Image> images;
      for (int64_t i = 0; i < frames.size(0); ++i) {
        const at::Tensor frame = frames[i].contiguous();
        const auto* const bytes = frame.const_data_ptr<uint8_t>();
        images.push_back({static_cast<int>(frame.size(1)), static_cast<int>(frame.size(0)),
                          std::vector<uint8_t>(bytes, bytes + frame.numel())});
      }
      VideoOptions options;
      options.min_pixels = 1;  // they need no resize
      const Patches got = qwen_patches(Video{video_of(std::move(images), part["fps"], "frames"), options},
                                       QwenImageOptions());
      const at::Tensor size = golden["video_grid_thw"][video];
      CHECK(got.grid == Grid{size[0].item<int>(), size[1].item<int>(), size[2].item<int>()});
      const at::Tensor expected = golden["pixel_values_videos"].narrow(0, first, got.pixel_values.size(0));
      CHECK(difference(got.values(0, expected.size(0)), expected) < 1e-5);
      REQUIRE(got.clip);
      CHECK(got.clip->seconds_per_grid == doctest::Approx(part["second_per_grid_t"].get<double>()));
      CHECK(std::ssize(got.clip->seconds) == got.grid.t);
      grids.push_back(got.grid);
      first += expected.size(0);
      ++video;
      ++run;
    }
    if (!golden.has("video_window_index")) continue;
    const json vision = read_json(folder() / "base/config.json")["vision_config"];
    const VitWindows windows = vit_windows(grids, 2, vision["window_size"].get<int64_t>() / 28);
    CHECK(difference(windows.index, golden["video_window_index"]) == 0);
    std::vector<int64_t> ends = {0};
    for (const int64_t length : windows.window_lengths) ends.push_back(ends.back() + 4 * length);
    CHECK(ends == golden.integers("video_cu_window_seqlens"));
  }
  test::check_count("videos", run, 6);
}

TEST_CASE("tensors of Qwen2.5-VL are called the same in every published layout") {
  if (!std::filesystem::exists(folder())) return test::check_count("names of tensors", 0, 1);
  const json table = read_json(folder() / "tables/keys.json");
  for (const json& row : table["rows"])
    CHECK(QwenVl::canonical_name(row[1].get<std::string>()) == row[0].get<std::string>());
}
