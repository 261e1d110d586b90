// What tells that a run goes on as it began: content of files, settings, who writes.
#include "glimpse/io/run_identity.h"

#include <unistd.h>

#include "glimpse/io/file_lock.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::check_mentions;
using glimpse::test::error_of;
using glimpse::test::Scratch;
using nlohmann::json;

namespace {

std::string bytes_of(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 31 + i / 251);
  return bytes;
}

}  // namespace

TEST_CASE("a file's fingerprint is that of its content") {
  const Scratch scratch;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{12288}, size_t{12289}, size_t{9} << 20}) {
    std::string bytes = bytes_of(size);
    const std::string before = file_fingerprint(scratch.write("a", bytes));
    CHECK(before.size() == 16);
    CHECK(file_fingerprint(scratch.write("moved/b", bytes)) == before);
    CHECK(file_fingerprint(scratch.write("longer", bytes + '\0')) != before);
    for (const size_t place : {size_t{0}, size / 2, size - 1}) {
      if (size == 0 || (size > 12289 && place == size / 2)) continue;
      std::string other = bytes;
      other[place] ^= 1;
      CHECK(file_fingerprint(scratch.write("other", other)) != before);
    }
  }
  // A change of 4 MiB and a block is found wherever it lies; of a file below the bound, every byte.
  const size_t size = size_t{21} << 20, part = (size_t{4} << 20) + 4096;
  const std::string bytes = bytes_of(size);
  const std::string before = file_fingerprint(scratch.write("large", bytes));
  for (size_t place = 0; place + part <= size; place += size_t{3} << 20) {
    std::string other = bytes;
    for (size_t i = place; i < place + part; ++i) other[i] ^= 1;
    CHECK(file_fingerprint(scratch.write("other", other)) != before);
  }
  std::string other = bytes;
  other[5000] ^= 1;
  scratch.write("other", other);
  CHECK(file_fingerprint(scratch / "other") == before);
  CHECK(file_fingerprint(scratch / "other", size) != file_fingerprint(scratch / "large", size));
  check_mentions(error_of([&] { file_fingerprint(scratch / "none"); }), "none: cannot be read");
}

TEST_CASE("a model's fingerprint follows its weights and settings, not its place or what lies beside them") {
  const Scratch scratch;
  const auto fill = [&](const std::string& dir) {
    scratch.write(dir + "/model.safetensors", bytes_of(50000));
    scratch.write(dir + "/config.json", "{}");
    scratch.write(dir + "/README.md", dir);
    return scratch / dir;
  };
  const std::string before = weights_fingerprint(fill("a"));
  CHECK(weights_fingerprint(fill("elsewhere")) == before);
  std::string weights = bytes_of(50000);
  weights[33333] ^= 1;
  scratch.write("a/model.safetensors", weights);
  CHECK(weights_fingerprint(scratch / "a") != before);
  scratch.write("elsewhere/config.json", "{ }");
  CHECK(weights_fingerprint(scratch / "elsewhere") != before);
}

TEST_CASE("a row's fingerprint is that of what it asks") {
  const Scratch scratch;
  const auto image = scratch.write("a.png", "picture"), same = scratch.write("b.png", "picture");
  const std::string row = question_fingerprint("q", {{1, 2, 3, 4}}, {image});
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {same}) == row);
  CHECK(question_fingerprint("Q", {{1, 2, 3, 4}}, {image}) != row);
  CHECK(question_fingerprint("q", {{1, 2, 3, 5}}, {image}) != row);
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {}) != row);
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {image, same}) != row);
  scratch.write("a.png", "another");
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {image}) != row);
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {scratch / "none"}) != row);
  // What runs of before there were videos noted.
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {}) == content_hash(R"(["q",[[1.0,2.0,3.0,4.0]]])"));
}

TEST_CASE("a video's fingerprint is that of its file, or of all files of its folder") {
  const Scratch scratch;
  const auto file = scratch.write("clip.mp4", "video");
  const auto of = [](const std::vector<Box>& boxes, const std::filesystem::path& video) {
    return question_fingerprint("q", boxes, {}, {video});
  };
  const std::string row = of({{1, 2, 3, 4}}, file);
  CHECK(question_fingerprint("q", {{1, 2, 3, 4}}, {file}) != row);  // no picture
  CHECK(of({{1, 2, 3, 4, 0, 1}}, file) != row);
  CHECK(of({{1, 2, 3, 4, 0, 1}}, file) != of({{1, 2, 3, 4, 0, 2}}, file));
  scratch.write("frames/1.png", "a");
  const std::string one = of({}, scratch / "frames");
  scratch.write("frames/2.png", "b");
  const std::string two = of({}, scratch / "frames");
  CHECK(one != two);
  scratch.write("frames/2.png", "c");
  CHECK(of({}, scratch / "frames") != two);
}

TEST_CASE("settings that differ are told with both values") {
  const json before = {
      {"dtype", "bf16"}, {"pruning", {{{"threshold", 0.5}}}}, {"place", "a"}, {"list", {1, 2}}};
  json now = before;
  CHECK(differences(before, now).empty());
  now["place"] = "b";
  CHECK(differences(before, now, {"place"}).empty());
  CHECK(differences(before, now) == "place \"a\", now \"b\"");
  now["pruning"][0]["threshold"] = 0.4;
  now["list"] = {1};
  now["new"] = std::string(500, 'x');
  const std::string all = differences(before, now, {"place"});
  check_mentions(all, "pruning.0.threshold 0.5, now 0.4");
  check_mentions(all, "list.1 2, now null");
  check_mentions(all, "new null, now \"xxx");
  CHECK(all.size() < 200);
  for (int i = 0; i < 9; ++i) now[concat("more", i)] = i;
  check_mentions(differences(before, now, {"place"}), "; and 7 more");
  CHECK(stored({{"path", "caf\xe9"}}) == json{{"path", "caf\xef\xbf\xbd"}});
}

TEST_CASE("a lock is told by who holds it") {
  const Scratch scratch;
  const auto file = scratch / "lock";
  const auto taken = [&](LockKind kind) { return error_of([&] { FileLock lock(file, kind); }); };
  {
    const FileLock first(file, LockKind::exclusive);
    check_mentions(taken(LockKind::exclusive),
                   concat("lock: process ", ::getpid(), " (test_io) is writing there"));
    check_mentions(taken(LockKind::shared), "is writing there");
  }
  {
    const FileLock first(file, LockKind::shared), second(file, LockKind::shared);
    check_mentions(taken(LockKind::exclusive), "is writing there");
  }
  CHECK(taken(LockKind::exclusive_wait).empty());
  check_mentions(error_of([&] { FileLock lock(scratch / "", LockKind::shared); }), "is not a regular file");
  check_mentions(error_of([&] { FileLock lock(scratch / "no/lock", LockKind::shared); }),
                 "No such file or directory");
}
