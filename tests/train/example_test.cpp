// Rows as they are trained on: which visual tokens of a picture or a video the boxes mark.
#include "glimpse/train/example.h"

#include "builtin.h"
#include "glimpse/image/overlay.h"
#include "io/scratch.h"

#include <doctest/doctest.h>

using namespace glimpse;
using namespace glimpse::test;

namespace {

// A clip of eight frames, two a second: a folder of pictures.
struct ClipRow {
  Scratch scratch;
  TrainRow row;
  Size size;

  ClipRow() {
    const auto given = tiny_rows("rows.jsonl").at(0);
    const Image picture = row_image(given);
    size = {picture.height, picture.width};
    std::filesystem::create_directories(scratch / "clip");
    for (int frame = 0; frame < 8; ++frame)
      save_png(picture, scratch / "clip" / concat("frame-", frame, ".png"));
    row.question = given["question"];
    row.answer = given["answer"];
    row.video = true;
    row.path = scratch / "clip";
    row.file = "rows.jsonl";
    row.line = 7;
  }
  LoadedRow load(const MediaOptions& options = {}) const {
    return load_row(tiny_engine().model(), row, options);
  }
  // Tokens of each slice that the mask marks.
  std::vector<int64_t> marked(const MediaOptions& options = {}) const {
    const Example example = load(options).example;
    std::vector<int64_t> counts;
    for (const Segment& slice : example.prompt.segments) {
      const at::Tensor own = example.reference.narrow(0, slice.first, slice.count());
      counts.push_back(own.sum().item<int64_t>());
    }
    return counts;
  }
};

}  // namespace

TEST_CASE("a box of a video marks the slices of the seconds that it is there") {
  ClipRow clip;
  const double width = clip.size.width, height = clip.size.height;
  clip.row.boxes = {{0, 0, width, height}};
  const std::vector<int64_t> all = clip.marked();
  REQUIRE(all.size() == 4);  // of two frames each, at 0.25, 1.25, 2.25 and 3.25 s
  const std::vector<Segment>& slices = clip.load().example.prompt.segments;
  for (const Segment& slice : slices) CHECK(slice.seconds == doctest::Approx(0.25 + (&slice - &slices[0])));
  CHECK(all == std::vector<int64_t>(4, slices[0].count()));
  clip.row.boxes = {{0, 0, width, height, 1, 2.25}};  // both ends included
  CHECK(clip.marked() == std::vector<int64_t>{0, all[1], all[2], 0});

  // Between two of them it marks the nearer one, however short it is there.
  clip.row.boxes = {{0, 0, width, height, 1.5, 1.5}};
  CHECK(clip.marked() == std::vector<int64_t>{0, all[1], 0, 0});
  clip.row.boxes = {{0, 0, width, height, 3.6, 3.6}};
  CHECK(clip.marked() == std::vector<int64_t>{0, 0, 0, all[3]});
  clip.row.boxes = {{0, 0, width, height, 5, 5.5}};  // when nothing is shown any more
  CHECK(clip.marked() == std::vector<int64_t>(4, 0));

  // Two boxes of two times, and one measured on frames of another size.
  const double half = width / 2 - 1;
  clip.row.boxes = {{0, 0, half, height, 0, 1}, {0, 0, width, height, 3, 9}};
  CHECK(clip.marked() == std::vector<int64_t>{all[0] / 2, 0, 0, all[3]});
  clip.row.width = 2 * clip.size.width;
  clip.row.height = 2 * clip.size.height;
  clip.row.boxes = {{0, 0, 2 * half, 2 * height, 0, 1}};
  CHECK(clip.marked() == std::vector<int64_t>{all[0] / 2, 0, 0, 0});

  // Fewer frames: the slices' times are those of the frames that are left.
  clip.row.boxes = {{0, 0, 2 * width, 2 * height, 1, 4}};
  CHECK(clip.marked({{}, {.frames = 4}}) == std::vector<int64_t>{0, all[1]});
}

TEST_CASE("a row about a video is asked with one") {
  ClipRow clip;
  const LoadedRow loaded = clip.load();
  CHECK(is_video(loaded.medium));
  CHECK_FALSE(loaded.example.reference.defined());
  REQUIRE(loaded.example.prompt.patches.size() == 1);
  CHECK(loaded.example.prompt.patches[0].clip.has_value());
  // Bounds of pictures hold for frames, unless these have their own.
  const auto tokens = [&](const MediaOptions& options) {
    return clip.load(options).example.prompt.segments[0].count();
  };
  CHECK(tokens({{.min_pixels = 1, .max_pixels = 16 * 28 * 28}, {}}) <= 16);
  CHECK(tokens({{.min_pixels = 1, .max_pixels = 16 * 28 * 28}, {.max_pixels = 4 * 28 * 28}}) <= 4);

  clip.row.boxes = {{static_cast<double>(clip.size.width), 0, 1000, 5}};
  check_mentions(error_of([&] { clip.load(); }), "rows.jsonl:7: ");
  check_mentions(error_of([&] { clip.load(); }), "lies outside the video");
  clip.row.path = clip.scratch.write("clip.mp4", "none");
  check_mentions(error_of([&] { clip.load(); }), "clip.mp4");
}
