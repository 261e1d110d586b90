#include <unistd.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "glimpse/base/check.h"
#include "glimpse/image/frame_folder.h"
#include "glimpse/image/overlay.h"
#include "glimpse/image/video_out.h"
#include "image/video_clips.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::vector<int64_t> all_of(const VideoSource& video) {
  std::vector<int64_t> indices(video.info().frames);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& whole, const std::string& part) {
  return whole.find(part) != whole.npos;
}

double largest_difference(const Image& frame, const json& blocks) {
  double worst = 0;
  for (int block = 0; block < 8; ++block) {
    const std::vector<double> got = test::mean_of(frame, block), want = blocks.at(block);
    for (int c = 0; c < 3; ++c) worst = std::max(worst, std::abs(got[c] - want[c]));
  }
  return worst;
}

/// Clips whose frames carry their numbers where number_of looks for them.
std::vector<std::string> upright_clips() {
  std::vector<std::string> files;
  for (const json& clip : test::read_json(test::clips / "index.json"))
    if (clip.at("turns") == 0 && clip.value("note", "") != "colours") files.push_back(clip.at("file"));
  return files;
}

/// A folder of its own, removed at the end.
struct Folder {
  fs::path path = fs::temp_directory_path() / concat("glimpse-frames-", ::getpid());
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

}  // namespace

TEST_CASE("a video file is as PyAV says") {
  const json index = test::read_json(test::clips / "index.json");
  CHECK(index.size() >= 20);
  for (const json& clip : index) {
    CAPTURE(clip.at("file"));
    const auto video = open_video(test::clips / clip.at("file").get<std::string>());
    const VideoInfo& info = video->info();
    CHECK(info.frames == clip.at("frames"));
    CHECK(info.width == clip.at("width"));
    CHECK(info.height == clip.at("height"));
    CHECK_FALSE(info.sampled);
    // Of a variable rate, how long the last frame is shown is anybody's guess.
    const bool variable = clip.value("note", "") == "a variable rate";
    CHECK(info.fps == doctest::Approx(clip.at("fps").get<double>()).epsilon(variable ? 0.05 : 1e-9));

    std::vector<int64_t> wanted;
    for (const auto& [at, blocks] : clip.at("samples").items()) wanted.push_back(std::stoll(at));
    std::sort(wanted.begin(), wanted.end());
    size_t seen = 0;
    video->read(wanted, [&](size_t i, const Image& frame) {
      CAPTURE(i);
      CHECK(i == seen++);
      CHECK(frame.width == info.width);
      CHECK(frame.height == info.height);
      CHECK(frame.rgb.size() == size_t{3} * frame.width * frame.height);
      CHECK(largest_difference(frame, clip.at("samples").at(std::to_string(wanted[i]))) < 1);
    });
    CHECK(seen == wanted.size());
  }
}

TEST_CASE("the frame at an index is the one with that number, however it is reached") {
  for (const std::string& file : upright_clips()) {
    CAPTURE(file);
    const auto video = open_video(test::clips / file);
    const std::vector<int64_t> all = all_of(*video);
    CHECK(test::numbers_of(*video, all) == all);
    for (const int64_t index : all) CHECK(test::numbers_of(*video, {index}) == std::vector<int64_t>{index});
    const int64_t last = all.back();
    for (const std::vector<int64_t>& jumps :
         {std::vector<int64_t>{last / 2, last / 2, last / 2 + 1, last, last},
          {0, last},
          {1, 9, last - 1},
          {last - 3, last}})
      CHECK(test::numbers_of(*video, jumps) == jumps);
    CHECK(test::numbers_of(*video, {}).empty());
  }
}

TEST_CASE("a video's bytes are as good as its file, and several threads may read one") {
  const auto video = open_video(test::read_bytes(test::clips / "h264.mp4"), "given");
  CHECK(video->name() == "given");
  const std::vector<int64_t> all = all_of(*video);
  std::vector<std::vector<int64_t>> seen(4);
  std::vector<std::thread> threads;
  threads.reserve(seen.size());
  for (auto& numbers : seen) threads.emplace_back([&] { numbers = test::numbers_of(*video, all); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& numbers : seen) CHECK(numbers == all);
}

TEST_CASE("colours are those that were filmed, by the stream's own matrix and range") {
  const std::vector<std::vector<double>> filmed{{235, 30, 30},   {30, 220, 40},  {40, 50, 230},
                                                {230, 225, 40},  {30, 200, 210}, {200, 40, 190},
                                                {120, 120, 120}, {250, 140, 20}};
  for (const char* file : {"bt601_limited.mp4", "bt601_full.mp4", "bt709_limited.mp4", "bt709_full.mp4"}) {
    CAPTURE(std::string(file));
    open_video(test::clips / file)->read(std::vector<int64_t>{1}, [&](size_t, const Image& frame) {
      for (int block = 0; block < 8; ++block)
        for (int c = 0; c < 3; ++c)
          CHECK(std::abs(test::mean_of(frame, block, 0.5, 1, 3)[c] - filmed[block][c]) < 4);
    });
  }
}

TEST_CASE("a folder of pictures is a video in the order of their numbers") {
  const Folder folder;
  for (const int number : {0, 2, 9, 10, 11, 100})
    save_png(test::numbered(number, 32, 24), folder.path / concat("frame", number, ".png"));
  std::ofstream(folder.path / "notes.txt") << "no picture";
  const auto video = open_video(folder.path);
  CHECK(video->info().frames == 6);
  CHECK(video->info().sampled);
  CHECK(video->info().width == 32);
  CHECK(test::numbers_of(*video, {0, 1, 2, 3, 4, 5, 5}) == std::vector<int64_t>{0, 2, 9, 10, 11, 100, 100});

  save_png(test::numbered(0, 32, 26), folder.path / "frame30.png");
  const auto uneven = open_video(folder.path);
  CHECK(test::numbers_of(*uneven, {0, 1}).size() == 2);
  const std::string message = error_of([&] { test::numbers_of(*uneven, {0, 5}); });
  CHECK(contains(message, "frame30.png: is 32 x 26"));
  std::ofstream(folder.path / "frame30.png") << "damaged";
  CHECK(contains(error_of([&] { test::numbers_of(*uneven, {0, 5}); }), "frame30.png"));
  for (const auto& file : fs::directory_iterator(folder.path)) fs::remove(file);
  CHECK(contains(error_of([&] { open_video(folder.path); }), "no pictures"));
}

TEST_CASE("frames in memory are a video") {
  std::vector<Image> frames{test::numbered(5, 32, 24), test::numbered(7, 32, 24)};
  const auto video = video_of(frames, 3, "list");
  CHECK(video->info().fps == 3);
  CHECK(video->info().sampled);
  CHECK(test::numbers_of(*video, {0, 1, 1}) == std::vector<int64_t>{5, 7, 7});
  frames.push_back(test::numbered(1, 32, 26));
  CHECK(contains(error_of([&] { video_of(frames, 3, "list"); }), "list: frame 2 is 32 x 26"));
  CHECK(contains(error_of([] { video_of({}, 3, "list"); }), "without frames"));
}

TEST_CASE("indices are checked, and what the caller throws comes back") {
  for (const auto& video :
       {open_video(test::clips / "h264.mp4"), video_of({60, test::numbered(1, 8, 8)}, 2, "list")}) {
    const auto read = [&](std::vector<int64_t> indices) {
      return error_of([&] { test::numbers_of(*video, indices); });
    };
    CHECK(contains(read({60}), "frame 60 of 60"));
    CHECK(contains(read({-1, 3}), "frame -1"));
    CHECK(contains(read({4, 3}), "ascending"));
    const auto stop = [](size_t i, const Image&) {
      if (i == 1) throw std::runtime_error("stop");
    };
    CHECK_THROWS_WITH(video->read(std::vector<int64_t>{1, 2, 3}, stop), "stop");
  }
}

TEST_CASE("names are in the order of their numbers") {
  using glimpse::detail::name_before;
  const std::vector<std::string> ordered{"a", "a1", "a02", "a2", "a10", "a10b2", "a10b10", "b", "b0", "b1"};
  for (size_t i = 0; i < ordered.size(); ++i)
    for (size_t k = 0; k < ordered.size(); ++k) CHECK(name_before(ordered[i], ordered[k]) == (i < k));
}

TEST_CASE("what is written is read again") {
  const Folder folder;
  std::vector<Image> frames;
  frames.reserve(31);
  for (int i = 0; i < 30; ++i) frames.push_back(test::numbered(i, 65, 49));
  for (const char* name : {"clip.mp4", "clip.MKV", "clip.mov"}) {
    CAPTURE(name);
    const fs::path path = folder.path / name;
    CHECK(is_video_name(path));
    save_video(path, 12.5, frames);
    const auto video = open_video(path);
    CHECK(video->info().frames == 30);
    CHECK(video->info().fps == doctest::Approx(12.5));
    CHECK(video->info().width == 66);  // even
    CHECK(video->info().height == 50);
    CHECK(test::numbers_of(*video, all_of(*video)) == all_of(*video));
    video->read(std::vector<int64_t>{7}, [&](size_t, const Image& frame) {
      CHECK(test::mean_of(frame, 0, 0, 1, 3)[0] == doctest::Approx(230).epsilon(0.02));
      CHECK(test::mean_of(frame, 7, 0, 1, 3)[0] == doctest::Approx(20).epsilon(0.1));
    });
  }
  // Nothing is left of what was not finished, and what was there before stays.
  const auto size = fs::file_size(folder.path / "clip.mp4");
  int given = 0;
  const auto next = [&]() -> std::optional<Image> {
    check(++given < 10, "the camera broke");
    return frames[0];
  };
  CHECK(error_of([&] { save_video(folder.path / "clip.mp4", 12, next); }) == "the camera broke");
  CHECK(error_of([&] { save_video(folder.path / "other.mp4", 12, next); }) == "the camera broke");
  CHECK(fs::file_size(folder.path / "clip.mp4") == size);
  CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 3);

  CHECK(contains(error_of([&] { save_video(folder.path / "a.webp", 12, frames); }), ".mp4, .mov or .mkv"));
  CHECK(contains(error_of([&] { save_video(folder.path / "a.mp4", 0, frames); }), "frames per second"));
  CHECK(contains(error_of([&] { save_video(folder.path / "a.mp4", 2, std::vector<Image>{}); }),
                 "without frames"));
  frames.push_back(test::numbered(0, 64, 48));
  CHECK(contains(error_of([&] { save_video(folder.path / "a.mp4", 2, frames); }), "64 x 48"));
  CHECK(contains(error_of([&] { save_video(folder.path / "none" / "a.mp4", 2, frames); }), "cannot write"));
}

TEST_CASE("a contact sheet shows all frames") {
  std::vector<Image> frames(5);
  for (Image& frame : frames)
    frame = {2, 1, std::vector<uint8_t>(6, static_cast<uint8_t>(&frame - frames.data()))};
  const Image sheet = contact_sheet(frames, 3);
  CHECK(sheet.width == 3 * 2 + 2 * 2);
  CHECK(sheet.height == 2 * 1 + 2);
  const auto pixel = [&](int x, int y) { return sheet.rgb.at((size_t(y) * sheet.width + x) * 3); };
  CHECK(pixel(0, 0) == 0);
  CHECK(pixel(2, 0) == 128);
  CHECK(pixel(4, 0) == 1);
  CHECK(pixel(9, 0) == 2);
  CHECK(pixel(0, 1) == 128);
  CHECK(pixel(5, 3) == 4);
  CHECK(pixel(8, 3) == 128);
  CHECK(contact_sheet(frames, 8).height == 1);
  CHECK_THROWS_AS(contact_sheet({}, 3), Error);
  CHECK_THROWS_AS(contact_sheet(frames, 0), Error);
  frames.push_back(Image{1, 1, {1, 2, 3}});
  CHECK_THROWS_AS(contact_sheet(frames, 3), Error);
}
