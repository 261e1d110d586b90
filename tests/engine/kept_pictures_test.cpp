#include "glimpse/engine/kept_pictures.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "glimpse/base/check.h"

using namespace glimpse;

namespace {

/// Frames of one colour each: 10, 20, 30, ...
Video clip(int frames, int width, int height) {
  std::vector<Image> all;
  for (int i = 1; i <= frames; ++i)
    all.push_back(
        {width, height, std::vector<uint8_t>(size_t{3} * width * height, static_cast<uint8_t>(10 * i))});
  return {video_of(std::move(all), 2, "a clip"), {}};
}

uint8_t red_at(const Image& image, int x, int y) {
  return image.rgb[3 * (static_cast<size_t>(y) * image.width + x)];
}

}  // namespace

TEST_CASE("a sheet has the first frame of every grid with what the grid keeps") {
  const Video video = clip(6, 8, 4);
  // Of three grids of 1 x 2 tokens: the left one, none, the right one.
  const std::vector<KeptGrid> grids = {{1, 2, {0}}, {1, 2, {}}, {1, 2, {1}}};
  const Image mask = kept_picture(video, grids, KeptStyle::mask);
  REQUIRE(mask.width == 8 + 2 + 8);
  REQUIRE(mask.height == 4 + 2 + 4);
  CHECK(red_at(mask, 1, 1) == 255);
  CHECK(red_at(mask, 6, 1) == 0);
  CHECK(red_at(mask, 11, 1) == 0);
  CHECK(red_at(mask, 16, 1) == 0);
  CHECK(red_at(mask, 1, 7) == 0);
  CHECK(red_at(mask, 6, 7) == 255);

  const Image overlay = kept_picture(video, grids, KeptStyle::overlay);
  // Frames 0, 2 and 4; what is dropped has three tenths of its light.
  CHECK(red_at(overlay, 7, 1) == 10 * 3 / 10);
  CHECK(red_at(overlay, 11, 1) == 30 * 3 / 10);
  CHECK(red_at(overlay, 1, 7) == 50 * 3 / 10);
}

TEST_CASE("a sheet of many large frames is made smaller") {
  const Video video = clip(18, 2000, 1500);
  const std::vector<KeptGrid> grids(9, KeptGrid{1, 1, {0}});
  const Image sheet = kept_picture(video, grids, KeptStyle::mask);
  CHECK(int64_t{sheet.width} * sheet.height < 17'000'000);
  CHECK(sheet.width > 4000);
  CHECK(static_cast<double>(sheet.width) / sheet.height == doctest::Approx(4.0 / 3).epsilon(0.01));
}

TEST_CASE("frames are those that the options choose") {
  Video video = clip(7, 8, 4);
  CHECK(shown_frames(video).indices == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 6});
  video.options.frames = 4;
  CHECK(shown_frames(video).indices == std::vector<int64_t>{0, 2, 4, 6});
  video.options.start = 100;
  const auto says = [&](const auto& work) {
    try {
      work();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(says([&] { shown_frames(video); }).starts_with("a clip: "));
  // Grids of something else.
  const std::vector<KeptGrid> many(9, KeptGrid{1, 1, {0}});
  CHECK(says([&] { kept_picture(clip(6, 8, 4), many, KeptStyle::mask); }).find("9 token grids") !=
        std::string::npos);
  CHECK(says([&] { kept_picture(clip(6, 8, 4), {}, KeptStyle::mask); }).starts_with("a clip: "));
  const Image picture{4, 4, std::vector<uint8_t>(48)};
  const std::vector<KeptGrid> grid(1, KeptGrid{1, 1, {0}});
  CHECK(says([&] {
          save_kept(picture, grid, KeptStyle::overlay, "/nowhere/a.mp4");
        }).starts_with("/nowhere/a.mp4: "));
}
