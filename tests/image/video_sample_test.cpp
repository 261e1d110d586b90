#include <nlohmann/json.hpp>
#include <numeric>

#include "glimpse/base/check.h"
#include "glimpse/image/video.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

const std::filesystem::path golden = test::golden_root / "qwen_tiny_video";

/// qwen-vl-utils' names of the settings.
VideoOptions options_of(const json& row) {
  json given;
  for (const auto& [theirs, ours] : {std::pair{"fps", "fps"},
                                     {"nframes", "frames"},
                                     {"min_frames", "min_frames"},
                                     {"max_frames", "max_frames"},
                                     {"video_start", "start"},
                                     {"video_end", "end"},
                                     {"min_pixels", "min_pixels"},
                                     {"max_pixels", "max_pixels"},
                                     {"total_pixels", "total_pixels"}})
    if (row.contains(theirs)) given[ours] = row.at(theirs);
  VideoOptions options;
  if (!given.is_null()) options.fields().from_json(given, "row");
  return options;
}

/// As the table writes lists: long ones shortened.
json shortened(const std::vector<int64_t>& indices) {
  if (indices.size() <= 24) return indices;
  return {{"count", indices.size()},
          {"first", std::vector(indices.begin(), indices.begin() + 8)},
          {"last", std::vector(indices.end() - 8, indices.end())},
          {"sum", std::accumulate(indices.begin(), indices.end(), int64_t{0})}};
}

VideoInfo list_of(int64_t frames, int width = 150, int height = 100) {
  return {.frames = frames, .width = width, .height = height, .sampled = true};
}

std::string error_of(const VideoInfo& info, const VideoOptions& options, int factor = 28) {
  try {
    sample_video(info, options, factor);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("videos are sampled as qwen-vl-utils samples them") {
  const json table = test::read_json(golden / "tables/sampling.json");
  int refused = 0;
  for (const json& row : table.at("rows")) {
    CAPTURE(row.dump());
    const json &in = row.at("in"), &want = row.at("qwen_vl_utils");
    const VideoInfo info{in.at("frames"), in.at("video_fps"), in.at("width"), in.at("height"), false};
    if (want.is_null()) {
      // One setting is out of any range, which is said at once.
      CHECK_THROWS_AS(sample_video(info, options_of(in), 28), Error);
      ++refused;
      continue;
    }
    const VideoSample sample = sample_video(info, options_of(in), 28);
    CHECK(sample.indices.size() == want.at("nframes"));
    CHECK(shortened(sample.indices) == want.at("indices"));
    CHECK(sample.fps == want.at("sample_fps").get<double>());
    CHECK(json({sample.size.height, sample.size.width}) == want.at("resized"));
  }
  if (test::own_golden_data) CHECK(table.at("rows").size() == 66);
  CHECK(refused > 0);
}

TEST_CASE("of frames that were chosen already all are taken") {
  const json table = test::read_json(golden / "tables/sampling.json");
  // What qwen-vl-utils' smart_resize gives for the frames as they are; its lists of frames are resized twice,
  // which changes the third and the last.
  const std::vector<Size> sizes{{280, 392}, {280, 392}, {476, 644}, {560, 1008}, {252, 168}};
  size_t seen = 0;
  for (const json& row : table.at("frame_lists")) {
    CAPTURE(row.dump());
    const json& in = row.at("in");
    if (in.contains("resized_height")) continue;  // a setting that there is not
    VideoOptions options = options_of(in);
    if (in.contains("sample_fps")) options.fps = in.at("sample_fps");
    const VideoSample sample =
        sample_video(list_of(in.at("frames"), in.at("width"), in.at("height")), options, 28);
    std::vector<int64_t> want(in.at("frames").get<size_t>());
    std::iota(want.begin(), want.end(), 0);
    if (want.size() % 2) want.push_back(want.back());
    CHECK(sample.indices == want);
    CHECK(sample.indices.size() == row.at("nframes"));
    CHECK(sample.fps == row.at("sample_fps"));
    REQUIRE(seen < sizes.size());
    CHECK(sample.size == sizes[seen++]);
  }
  CHECK(seen == sizes.size());
}

TEST_CASE("too many frames of a list are thinned out") {
  VideoInfo info = list_of(100);
  VideoSample sample = sample_video(info, {.max_frames = 11}, 28);
  CHECK(sample.indices == std::vector<int64_t>{0, 11, 22, 33, 44, 55, 66, 77, 88, 99});
  CHECK(sample.fps == doctest::Approx(0.2));  // a tenth of 2
  info.fps = 30;
  CHECK(sample_video(info, {.max_frames = 11}, 28).fps == doctest::Approx(3));
  CHECK(sample_video(info, {}, 28).fps == 30);
  CHECK(sample_video(info, {.fps = 5}, 28).fps == 5);
  CHECK(sample_video(info, {.frames = 4}, 28).indices == std::vector<int64_t>{0, 33, 66, 99});
  // A part of it, by the rate at which the frames were taken.
  sample = sample_video(info, {.fps = 10, .start = 2, .end = 2.5}, 28);
  CHECK(sample.indices == std::vector<int64_t>{20, 21, 22, 23, 24, 25});
  CHECK(sample.fps == 10);
}

TEST_CASE("what options leave out is as a model wants it, and else as usual") {
  const VideoOptions model{
      .fps = 4, .min_frames = 6, .max_frames = 10, .min_pixels = 3136, .max_pixels = 50176};
  const VideoInfo info{240, 24, 640, 480, false};
  const auto count = [&](const VideoOptions& asked) {
    return sample_video(info, asked.or_else(model), 28).indices.size();
  };
  CHECK(count({}) == 10);
  CHECK(count({.max_frames = 768}) == 40);
  CHECK(count({.fps = 0.8}) == 8);
  CHECK(count({.fps = 0.1}) == 6);
  CHECK(count({.fps = 0.1, .min_frames = 2}) == 2);
  CHECK(count({.frames = 12}) == 12);  // instead of a rate
  CHECK(sample_video(info, VideoOptions{}.or_else({}), 28).indices.size() == 20);
  const auto pixels = [&](const VideoOptions& asked) {
    const Size size = sample_video(info, asked.or_else(model), 28).size;
    return size.height * size.width;
  };
  CHECK(pixels({}) <= 50176);
  CHECK(pixels({.max_pixels = 100352}) > 50176);
  CHECK_THROWS_AS(count({.fps = 2, .frames = 4}), Error);
}

TEST_CASE("the side of a visual token sets the size of frames") {
  const VideoInfo info{.frames = 300, .fps = 30, .width = 1280, .height = 720};
  CHECK(sample_video(info, {}, 28).size == Size{560, 1008});
  // 768 tokens of 32 x 32.
  CHECK(sample_video(info, {}, 32).size == Size{640, 1152});
}

TEST_CASE("however few pixels there may be of all frames, each keeps a twentieth above the least") {
  // By qwen-vl-utils' smart_resize with 100352 to 105369 pixels.
  VideoInfo info{.frames = 48, .fps = 24, .width = 480, .height = 640};
  CHECK(sample_video(info, {.total_pixels = 1}, 28).size == Size{364, 280});
  info = {.frames = 48, .fps = 24, .width = 1000, .height = 900};
  CHECK(sample_video(info, {.total_pixels = 1}, 28).size == Size{280, 336});
}

TEST_CASE("what cannot be sampled is said") {
  const VideoInfo video{.frames = 100, .fps = 25, .width = 64, .height = 48};
  CHECK(error_of(video, {.fps = 1, .frames = 4}).find("both given") != std::string::npos);
  CHECK(error_of(video, {.frames = 102}).find("of 100 frames") != std::string::npos);
  CHECK(error_of({.frames = 1, .fps = 25, .width = 64, .height = 48}, {}).find("of 1 frame ") !=
        std::string::npos);
  CHECK(error_of(video, {.start = 9}).find("4 seconds") != std::string::npos);
  CHECK(error_of(video, {.min_pixels = 5000, .max_pixels = 4000}).find("less than") != std::string::npos);
  CHECK(error_of({}, {}).find("without frames") != std::string::npos);
  CHECK(error_of({.frames = 9, .fps = 1, .width = 20000, .height = 50}, {}).find("aspect ratio") !=
        std::string::npos);
  CHECK(error_of({.frames = 9, .fps = 1, .width = 2000, .height = 20}, {.min_pixels = 1, .max_pixels = 900})
            .find("too thin") != std::string::npos);
  VideoOptions options;
  CHECK_THROWS_WITH_AS(options.fields().from_json({{"fps", 0}}, "video"), doctest::Contains("fps"), Error);
  CHECK_THROWS_WITH_AS(options.fields().from_json({{"frames", 1}}, "video"), doctest::Contains("frames"),
                       Error);
}

TEST_CASE("frames are resized as torchvision resizes them") {
  const test::GoldenArrays arrays(golden / "resize/frames.safetensors");
  for (const std::string number : {"0", "1"}) {
    const auto from = arrays.shape(number + ".frames"), to = arrays.shape(number + ".qwen_vl_utils");
    const auto pixels = arrays.values<uint8_t>(number + ".frames");
    const auto want = arrays.values<uint8_t>(number + ".qwen_vl_utils");
    const int64_t size = from[1] * from[2] * 3, resized = to[1] * to[2] * 3;
    for (int64_t i = 0; i < from[0]; ++i) {
      const Image frame{static_cast<int>(from[2]),
                        static_cast<int>(from[1]),
                        {&pixels[i * size], &pixels[i * size] + size}};
      const Image got = resize_frame(frame, {static_cast<int>(to[1]), static_cast<int>(to[2])});
      int64_t different = 0;
      int worst = 0;
      for (int64_t k = 0; k < resized; ++k) {
        different += got.rgb[k] != want[i * resized + k];
        worst = std::max(worst, std::abs(got.rgb[k] - want[i * resized + k]));
      }
      CAPTURE(number);
      // Vector units round a sum otherwise where it lies half way.
      CHECK(worst <= 1);
      CHECK(different <= resized / 10000);
    }
  }
  const Image frame{2, 1, {1, 2, 3, 4, 5, 6}};
  CHECK(resize_frame(frame, {1, 2}).rgb == frame.rgb);
  CHECK_THROWS_AS(resize_frame(frame, {0, 2}), Error);
  CHECK_THROWS_AS(resize_frame({}, {1, 2}), Error);
}
