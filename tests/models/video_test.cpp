// Videos in prompts of Qwen2.5-VL and in its encoder; golden cases and parity tests have the numbers.
#include <cmath>

#include "builtin.h"
#include "glimpse/models/video_settings.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Ids = std::vector<int64_t>;
using test::difference;

namespace {

constexpr int64_t kImage = 566, kVideo = 567, kStart = 563, kEnd = 564;

const Vlm& model() {
  return test::tiny_engine().model();
}

Patches picture(int h, int w) {
  return {at::zeros({int64_t{h} * w, 1176}), {1, h, w}};
}

Patches clip(int t, int h, int w, double seconds_per_grid) {
  Patches out{at::zeros({int64_t{t} * h * w, 1176}), {t, h, w}};
  out.clip.emplace(seconds_per_grid);
  return out;
}

Video frames(int count, int width, int height, const VideoOptions& options) {
  std::vector<Image> images;
  for (int i = 0; i < count; ++i)
    images.push_back({width, height, std::vector<uint8_t>(size_t{3} * width * height, 40 * i % 256)});
  return {video_of(std::move(images), 2, "frames"), options};
}

VideoOptions small() {
  VideoOptions options;
  options.min_pixels = 1;
  return options;
}

}  // namespace

TEST_CASE("a video has a place, a segment for every slice, and times") {
  // An image of 2 x 3 tokens, a video of three slices of 1 x 2, 1.5 s apart; each place once, and widened.
  const Ids once = {5, kStart, kImage, kEnd, kStart, kVideo, kEnd, 6};
  Ids wide;
  for (const int64_t id : once) wide.insert(wide.end(), id == kImage || id == kVideo ? 6 : 1, id);
  for (const Ids& ids : {once, wide}) {
    const Prompt prompt = model().prompt(ids, {picture(4, 6), clip(3, 2, 4, 1.5)});
    CHECK(prompt.ids == wide);
    REQUIRE(prompt.segments.size() == 4);
    CHECK(media_count(prompt.segments) == 2);
    for (int slice = 0; slice < 3; ++slice) {
      const Segment& segment = prompt.segments[1 + slice];
      CHECK(segment.medium == 1);
      CHECK(segment.first == 6 + 2 * slice);
      CHECK(segment.count() == 2);
      CHECK(segment.seconds == 1.5 * slice);
    }
    // Two positions to the second; the text goes on behind the last slice.
    const at::Tensor time = prompt.position_ids[0].contiguous();
    CHECK(Ids(time.const_data_ptr<int64_t>(), time.const_data_ptr<int64_t>() + time.numel()) ==
          Ids{0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 7, 10, 10, 13, 13, 14, 15});
    CHECK(prompt.next_position == 16);
  }
}

TEST_CASE("what does not fit a video is said") {
  const auto fails = [](const Ids& ids, std::vector<Patches> patches, const char* message) {
    CHECK_THROWS_WITH_AS(model().prompt(ids, std::move(patches)), doctest::Contains(message), Error);
  };
  fails({kImage, 1}, {clip(2, 2, 2, 1)}, "image 1 has 2 temporal slices, which only videos have");
  fails({kVideo, 1}, {picture(2, 2)}, "video 1 comes without the seconds between its slices");
  fails({kVideo, 1, kVideo}, {clip(2, 2, 2, 1)}, "more image places than the 1 images given");
  fails({kVideo, kVideo, 1}, {clip(3, 2, 2, 1)}, "image 1 has 2 places, expected 1 or 3");
  for (const double bad : {-1.0, 1e300, std::nan("")})
    fails({kVideo, 1}, {clip(2, 2, 2, bad)}, "must lie from 0 to a million");
  Patches uncounted = clip(2, 2, 2, 1);
  uncounted.clip->seconds = {0.5};
  fails({kVideo, 1}, {uncounted}, "a video has 2 temporal slices but 1 times");

  const auto asked = [](Part::Kind kind, const Medium& medium) {
    return [=] { return model().prompt({{"user", {{kind, ""}}}}, {medium}, {}); };
  };
  const Video video = frames(4, 56, 84, small());
  CHECK_THROWS_AS(asked(Part::Kind::image, video)(), Error);
  CHECK_THROWS_AS(asked(Part::Kind::video, Image{28, 28, std::vector<uint8_t>(3 * 28 * 28)})(), Error);
  const Prompt prompt = asked(Part::Kind::video, video)();
  CHECK(prompt.segments.size() == 2);
  CHECK(prompt.segments[0].rows == 3);
  CHECK(prompt.segments[0].seconds == 0.25);  // the middle of frames at 0 and 0.5 s
  CHECK(prompt.segments[1].seconds == 1.25);
}

TEST_CASE("a model that knows no videos says so") {
  const auto folder = test::golden_dir() / "llava_next_tiny/base_mistral";
  if (!std::filesystem::exists(folder)) return;
  const auto llava = load_vlm(folder, {.dtype = at::kFloat});
  CHECK_THROWS_WITH_AS(llava->prompt({{"user", {{Part::Kind::video, ""}}}}, {frames(4, 56, 56, small())}, {}),
                       doctest::Contains("knows no videos"), Error);
}

TEST_CASE("a long video is encoded slice by slice as each slice is alone, and so is what is recorded of it") {
  at::manual_seed(5);
  // More patches than queries, keys and values are made for at once.
  Patches video{at::randn({40 * 16 * 18, 1176}), {40, 16, 18}};
  video.clip.emplace(1.0);
  VisionTaps taps({1, 4});
  taps.attention = {{-1, false}, {2, true}};
  const VisionOutput all = model().encode({video}, taps);
  for (const int slice : {0, 27, 28, 39}) {
    INFO("slice " << slice);
    const VisionOutput alone =
        model().encode({{video.pixel_values.narrow(0, slice * 288, 288), {1, 16, 18}}}, taps);
    const auto same = [&](const at::Tensor& whole, const at::Tensor& part) {
      CHECK(difference(whole.narrow(0, slice * 72, 72), part) < 1e-4 * test::fp32_slack());
    };
    same(all.embeds, alone.embeds);
    for (size_t tap = 0; tap < 2; ++tap) {
      same(all.states[tap], alone.states[tap]);
      same(all.attention[tap].received, alone.attention[tap].received);
      same(all.attention[tap].keys, alone.attention[tap].keys);
    }
  }
}

TEST_CASE("how a checkpoint wants videos shown") {
  const test::BrokenModel checkpoint;
  const std::string file = "video_preprocessor_config.json";
  const auto says = [&](const nlohmann::json& settings) {
    std::ofstream(checkpoint.dir() / file) << settings.dump();
    return video_defaults(*open_model_dir(checkpoint.dir()));
  };
  const auto refused = [&](const nlohmann::json& settings, const std::string& message) {
    CHECK_THROWS_WITH_AS(says(settings), doctest::Contains((file + ": " + message).c_str()), Error);
  };
  const nlohmann::json none = VideoOptions().fields().to_json();
  CHECK(video_defaults(*open_model_dir(checkpoint.dir())).fields().to_json() == none);
  CHECK(says({{"do_sample_frames", true}, {"num_frames", 8}, {"fps", nullptr}}).fields().to_json() == none);
  const VideoOptions rate = says({{"fps", 1}, {"min_frames", 2}, {"max_frames", 32}});
  CHECK(rate.fps == 1);
  CHECK(rate.min_frames == 2);
  CHECK(rate.max_frames == 32);

  // A frame's bounds narrow those of qwen-vl-utils, 128 to 768 tokens; as an image's, which transformers
  // writes where it knew no others, they change nothing. A clip's are another thing.
  const auto bounds = [&](const char* type, const nlohmann::json& more) {
    nlohmann::json settings = {{"video_processor_type", type}};
    settings.update(more);
    const VideoOptions options = says(settings);
    return std::pair(options.min_pixels.value_or(0), options.max_pixels.value_or(0));
  };
  using Pixels = std::pair<int64_t, int64_t>;
  const auto size = [](int64_t least, int64_t most) {
    return nlohmann::json{{"size", {{"shortest_edge", least}, {"longest_edge", most}}}};
  };
  constexpr int64_t usual = 128 * 28 * 28;
  const char *frame = "Qwen2VLVideoProcessor", *clip = "Qwen3VLVideoProcessor";
  CHECK(bounds(frame, size(3136, 12845056)) == Pixels{usual, 12845056});
  CHECK(bounds(frame, size(200704, 401408)) == Pixels{200704, 401408});
  CHECK(bounds(frame, {{"min_pixels", 3136}, {"max_pixels", 50176}}) == Pixels{3136, 50176});
  CHECK(bounds(clip, size(4096, 25165824)) == Pixels{0, 0});

  refused({{"fps", "fast"}}, "fps: expected a number, got \"fast\"");
  refused({{"max_frames", 1}}, "max_frames: 1 is outside [2, ");
  refused({{"min_frames", 4.5}}, "min_frames: expected an integer");
  refused({{"video_processor_type", frame}, {"max_pixels", "many"}}, "max_pixels must be a whole number");
  refused(nlohmann::json::array(), "expected a JSON object");

  // Within the settings of the whole processor, as transformers 5 writes them; these win.
  says({{"fps", 1}});
  std::ofstream(checkpoint.dir() / "processor_config.json") << R"({"video_processor": {"fps": 3}})";
  CHECK(video_defaults(*open_model_dir(checkpoint.dir())).fps == 3);

  // What is asked for comes first, then a frame's bounds as of pictures.
  const VideoOptions asked =
      video_options({.fps = 5}, {.min_pixels = 784}, *open_model_dir(checkpoint.dir()));
  CHECK(asked.fps == 5);
  CHECK(asked.min_pixels == 784);
}

TEST_CASE("a checkpoint's settings for videos go with its encoder") {
  const test::BrokenModel checkpoint;
  const auto values = [&](const nlohmann::json& settings) {
    std::ofstream(checkpoint.dir() / "video_preprocessor_config.json") << settings.dump();
    const auto loaded = load_vlm(checkpoint.dir(), {.dtype = at::kFloat});
    const Prompt prompt =
        loaded->prompt({test::user("x", 1)}, {Image{56, 56, std::vector<uint8_t>(3 * 56 * 56, 90)}}, {});
    const Message clip{"user", {{Part::Kind::video, {}}}};
    const Prompt shown = loaded->prompt({clip}, {frames(2, 56, 56, small())}, {});
    return std::pair(prompt.patches[0].values(0, 1), shown.patches[0].values(0, 1));
  };
  const auto [picture, clip] = values({{"patch_size", 14}});
  CHECK(clip.min().item<float>() < 0);
  const auto [same, other] = values({{"image_mean", {0, 0, 0}}, {"image_std", {1, 1, 1}}});
  CHECK(at::equal(picture, same));
  CHECK(other.min().item<float>() == 0);
  CHECK_THROWS_WITH_AS(values({{"patch_size", 16}}),
                       doctest::Contains("video_preprocessor_config.json: patch_size is 16"), Error);
}
