#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "glimpse/base/check.h"
#include "image/video_clips.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Bytes = std::vector<uint8_t>;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

bool contains(const std::string& whole, const std::string& part) {
  return whole.find(part) != whole.npos;
}

std::string error_of(const Bytes& bytes) {
  try {
    open_video(bytes, "given");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string error_of(std::string_view text) {
  return error_of(Bytes{text.begin(), text.end()});
}

std::string error_of_file(const fs::path& path) {
  try {
    open_video(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Reads the first frames of a video and some behind jumps; how many there were, or nothing and an error that
/// names it.
std::optional<size_t> read_some(const Bytes& bytes) {
  size_t seen = 0;
  try {
    const auto video = open_video(bytes, "given");
    const VideoInfo& info = video->info();
    const int64_t last = info.frames - 1;
    const auto look = [&](size_t, const Image& frame) {
      CHECK(frame.rgb.size() == size_t{3} * frame.width * frame.height);
      CHECK(frame.width == info.width);
      ++seen;
    };
    std::vector<int64_t> indices;
    for (int64_t i = 0; i <= std::min<int64_t>(last, 20); ++i) indices.push_back(i);
    video->read(indices, look);
    video->read(std::vector<int64_t>{last / 2, last * 3 / 4, last}, look);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).starts_with("given: "));
    return {};
  }
  return seen;
}

std::vector<std::string> all_files() {
  std::vector<std::string> files;
  for (const json& entry : test::read_json(test::clips / "index.json")) files.push_back(entry.at("file"));
  return files;
}

size_t position(const Bytes& bytes, std::string_view what) {
  const auto found = std::search(bytes.begin(), bytes.end(), what.begin(), what.end());
  REQUIRE(found != bytes.end());
  return found - bytes.begin();
}

}  // namespace

TEST_CASE("what is no video is said") {
  CHECK(contains(error_of(""), "given: the video is empty"));
  CHECK(contains(error_of("hello"), "given: is no video file that is known; known are MP4"));
  CHECK(contains(error_of("version https://git-lfs.github.com/spec/v1"), "Git LFS"));
  CHECK(
      contains(error_of(test::read_bytes(test::data_root / "images" / "avif.avif")), "given: is a picture"));
  CHECK(contains(error_of(test::read_bytes(test::data_root / "images" / "png_rgb.png")), "no video file"));
  CHECK(contains(error_of(test::read_bytes(test::clips / "sound.m4a")),
                 "given: there is no video in the file"));
  CHECK(contains(error_of_file(fs::path("/nowhere/clip.mp4")), "/nowhere/clip.mp4: no such file"));
  for (const std::string_view magic :
       {std::string_view("\0\0\0\x18"
                         "ftypmp42",
                         12),
        std::string_view("\x1A\x45\xDF\xA3"), std::string_view("RIFF1234AVI ")})
    CHECK(contains(error_of(magic), "given: "));
}

TEST_CASE("a pipe is not waited for, and a file that leads to others not followed") {
  const fs::path folder = fs::temp_directory_path() / concat("glimpse-hostile-", ::getpid());
  fs::create_directories(folder);
  const fs::path pipe = folder / "pipe.mp4";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(contains(error_of_file(pipe), "neither a file nor a folder"));
  fs::copy_file(test::clips / "h264.mp4", folder / "there.mp4");
  const std::string there = (folder / "there.mp4").string();
  for (const std::string& list :
       {"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n" + there + "\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '" + there + "'\n",
        "<?xml version=\"1.0\"?><MPD><BaseURL>file://" + there + "</BaseURL></MPD>"})
    CHECK(contains(error_of(list), "no video file"));

  // A MOV whose frames lie in another file, by its data reference (ISO 14496-12, 8.7.2): not opened, so
  // nothing is found.
  Bytes movie = test::read_bytes(test::clips / "turned_1.mov");
  const size_t reference = position(movie, "url ");
  movie[reference + 7] = 0;  // the flag that says "in this file"
  const std::string_view alias = "alis";
  std::copy(alias.begin(), alias.end(), movie.begin() + reference);
  read_some(movie);
  fs::remove_all(folder);
}

TEST_CASE("frames beyond the limit are refused before memory is taken") {
  Bytes movie = test::read_bytes(test::clips / "av1.mp4");
  // The sides in the sample entry, 28 bytes behind where its name begins.
  const size_t name = position(movie, "stsd") + 16;
  for (const size_t side : {28, 30}) {
    movie[name + side] = 0xFF;
    movie[name + side + 1] = 0xF0;
  }
  const std::string message = error_of(movie);
  CHECK(contains(message, "given: "));
  CHECK(contains(message, "65520 x 65520 pixels; at most 67108864 pixels are accepted"));
}

TEST_CASE("a video cut anywhere is an error or has its first frames") {
  for (const std::string& file : all_files()) {
    const Bytes whole = test::read_bytes(test::clips / file);
    const std::optional<size_t> expected = read_some(whole);
    // Only containers without an index can be cut unnoticed; of others, what comes behind the video may be
    // missing.
    const bool indexed = !file.ends_with(".ts") && !file.ends_with(".mkv") && !file.ends_with(".webm") &&
                         !file.ends_with(".avi") && file != "h264_fragments.mp4";
    int refused = 0;
    constexpr int cuts = 40;
    for (int cut = 0; cut < cuts; ++cut) {
      const size_t size = whole.size() * cut / cuts;
      CAPTURE(concat(file, " cut to ", size));
      const std::optional<size_t> seen = read_some({whole.begin(), whole.begin() + size});
      if (indexed && seen) CHECK(seen == expected);
      refused += !seen;
    }
    CAPTURE(file);
    CHECK(refused >= (indexed ? cuts * 3 / 4 : 3));
  }
}

TEST_CASE("flipped bytes never do more than throw") {
  std::mt19937 random(7);
  int decoded = 0, refused = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const std::string& file : all_files()) {
    const Bytes whole = test::read_bytes(test::clips / file);
    for (int round = 0; round < 30; ++round) {
      Bytes bytes = whole;
      // Half of the rounds aim at the headers.
      const size_t reach = round % 2 ? bytes.size() : std::min<size_t>(bytes.size(), 800);
      for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips)
        bytes[random() % reach] = static_cast<uint8_t>(random());
      CAPTURE(concat(file, " round ", round));
      ++(read_some(bytes) ? decoded : refused);
    }
  }
  CHECK(decoded > 100);
  CHECK(refused > 100);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
}
