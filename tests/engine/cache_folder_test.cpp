// A bound for all that lies in the folder of a cache: what leaves for it, and what never does.
#include "glimpse/engine/cache_folder.h"

#include <iostream>
#include <sstream>

#include "glimpse/engine/packed_copy.h"
#include "glimpse/engine/prefix_store.h"
#include "io/scratch.h"

using namespace glimpse;
namespace fs = std::filesystem;
using Time = CacheFolder::Time;

namespace {

constexpr int kKib = 1024;

std::string name(const std::string& kind, char digit) {
  return kind + std::string(32, digit) + ".safetensors";
}

/// A folder with files of so many KiB, each used a second after the one before and long before now.
struct Files {
  const test::Scratch scratch;
  const fs::path dir = scratch / "cache";
  Time used = Time::clock::now() - std::chrono::minutes(30);

  fs::path add(const std::string& file, int kib) {
    fs::create_directories(dir);
    fs::path path = scratch.write("cache/" + file, std::string(static_cast<size_t>(kib) * kKib, 'x'));
    fs::last_write_time(path, used += std::chrono::seconds(1));
    return path;
  }
  /// Names of the kinds that are there, or first digits.
  std::string left() const {
    std::string out;
    for (const char digit : std::string("0123456789abcdef"))
      for (const char* kind : {"", "weights-", "picture-", "row-"})
        if (fs::exists(dir / name(kind, digit))) out += digit;
    return out;
  }
};

struct ErrorStream {
  std::ostringstream text;
  std::streambuf* before = std::cerr.rdbuf(text.rdbuf());
  ~ErrorStream() { std::cerr.rdbuf(before); }
};

/// What a load with layers that are kept in few bits leaves; "" when it says nothing.
std::string packed(const std::shared_ptr<CacheFolder>& folder, const std::string& origin, bool& mapped) {
  const ErrorStream errors;
  WeightOptions how;
  PackedCopy copy(folder, origin, how);
  mapped = how.packed != nullptr;
  if (!mapped) how.on_rounded("layer", quantise_weight(at::ones({64, 256}), 0));  // 16 KiB and a little
  copy.finish();
  return errors.text.str();
}

}  // namespace

TEST_CASE("files of all kinds count together, and those used least recently leave") {
  Files files;
  files.add(name("weights-", '3'), 10);
  files.add(name("", '1'), 10);
  files.add(name("row-", '4'), 10);
  files.add(name("picture-", '2'), 10);
  // Nobody's business.
  for (const char* other : {"mine.txt", "seed", "weights-1.safetensors", "model.safetensors"})
    files.add(other, 100);
  files.add(name("other-", '5'), 100);
  CacheFolder folder(files.dir, 45 * kKib);
  CHECK(folder.make_room(0));
  CHECK(files.left() == "1234");
  CHECK(folder.make_room(5 * kKib));
  CHECK(files.left() == "1234");
  CHECK(folder.make_room(10 * kKib));
  CHECK(files.left() == "124");
  CacheFolder::use(files.dir / name("", '1'));
  CHECK(folder.make_room(16 * kKib));
  CHECK(files.left() == "12");
  CHECK(folder.make_room(30 * kKib));
  CHECK(files.left() == "1");
  CHECK(folder.make_room(45 * kKib));
  CHECK(files.left().empty());
  CHECK(!folder.make_room(45 * kKib + 1));
  CHECK(std::distance(fs::directory_iterator(files.dir), fs::directory_iterator()) == 5);
}

TEST_CASE("what other processes write is seen long before the bound") {
  Files files;
  CacheFolder folder(files.dir, 64 * kKib);
  CHECK(folder.make_room(kKib));
  files.add(name("", '1'), 32);
  files.add(name("", '2'), 32);
  for (int i = 0; i < 6; ++i) CHECK(folder.make_room(kKib));
  CHECK(files.left() == "2");
}

TEST_CASE("what is held stays, whoever makes room") {
  Files files;
  const fs::path weights = files.add(name("weights-", '1'), 10);
  files.add(name("weights-", '2'), 10);
  files.add(name("", '3'), 10);
  CacheFolder other(files.dir, 15 * kKib);  // as of another process
  const Time before = fs::last_write_time(weights);
  {
    CacheFolder folder(files.dir, 40 * kKib);
    folder.hold(weights);
    CHECK(fs::last_write_time(weights) > before);  // used now
    fs::last_write_time(weights, before);
    // For what does not fit beside it nothing leaves.
    CHECK(!folder.make_room(31 * kKib));
    CHECK(!other.make_room(6 * kKib));
    CHECK(files.left() == "123");
    CHECK(folder.make_room(30 * kKib));
    CHECK(files.left() == "1");
    files.add(name("", '3'), 10);
    CHECK(other.make_room(0));
    CHECK(files.left() == "1");
    CHECK(other.make_room(5 * kKib));
    CHECK(!CacheFolder(files.dir, 8 * kKib).make_room(0));
    CHECK(files.left() == "1");
  }
  CHECK(fs::last_write_time(weights) > before);  // used until now
  CHECK(other.make_room(6 * kKib));
  CHECK(files.left().empty());
}

TEST_CASE("what is being written counts and stays; what killed processes left goes") {
  Files files;
  const fs::path fresh = files.add(name("weights-", '1') + ".tmp-7-0", 10),
                 old = files.add(name("", '2') + ".tmp-7-1", 10), mine = files.add("notes.tmp-7-1", 1);
  files.add(name("", '3'), 10);
  for (const fs::path& path : {old, mine})
    fs::last_write_time(path, Time::clock::now() - std::chrono::hours(2));
  CacheFolder folder(files.dir, 25 * kKib);
  CHECK(folder.make_room(5 * kKib));
  CHECK(files.left() == "3");
  CHECK(folder.make_room(6 * kKib));
  CHECK(files.left().empty());
  CHECK(!folder.make_room(16 * kKib));
  CHECK(fs::exists(fresh));
  CHECK(!fs::exists(old));
  CHECK(fs::exists(mine));
}

TEST_CASE("room is made of nothing that was used since a moment, where one is named") {
  Files files;
  files.add(name("row-", '1'), 10);
  const Time began = files.used + std::chrono::milliseconds(500);
  files.add(name("row-", '2'), 10);
  CacheFolder folder(files.dir, 20 * kKib);
  CHECK(!folder.make_room(11 * kKib, began));
  CHECK(files.left() == "12");
  CHECK(folder.make_room(10 * kKib, began));
  CHECK(files.left() == "2");
}

TEST_CASE("a file that exceeds the bound alone leaves first") {
  Files files;
  files.add(name("", '1'), 10);
  files.add(name("weights-", '2'), 50);
  CacheFolder folder(files.dir, 40 * kKib);
  CHECK(folder.make_room(0));
  CHECK(files.left() == "1");
}

TEST_CASE("a packed copy is within the folder's bound") {
  Files files;
  bool mapped = false;
  const auto folder = [&](uint64_t kib) { return std::make_shared<CacheFolder>(files.dir, kib * kKib); };
  const auto copies = [&] {
    std::vector<fs::path> out;
    for (const auto& file : fs::directory_iterator(files.dir))
      if (file.path().filename().string().starts_with("weights-")) out.push_back(file.path());
    return out;
  };
  // Larger than all: not written, and nothing leaves for it.
  files.add(name("", '1'), 10);
  const std::string told = packed(folder(16), "a", mapped);
  test::check_mentions(told, "no copy of the packed weights was kept");
  test::check_mentions(told, "raise cache_disk_gb");
  CHECK(std::count(told.begin(), told.end(), '\n') == 1);
  CHECK(copies().empty());
  CHECK(files.left() == "1");
  // What was used earlier leaves for it, and then its own kind.
  CHECK(packed(folder(24), "a", mapped) == "");
  CHECK(!mapped);
  CHECK(files.left().empty());
  REQUIRE(copies().size() == 1);
  const fs::path first = copies()[0];
  CHECK(packed(folder(24), "b", mapped) == "");
  CHECK(copies().size() == 1);
  CHECK(!fs::exists(first));
  CHECK(packed(folder(24), "b", mapped) == "");
  CHECK(mapped);
  // One that is in use does not: whoever is second keeps none, and pictures come and go beside it.
  auto running = folder(24);
  CHECK(packed(running, "b", mapped) == "");
  CHECK(mapped);
  test::check_mentions(packed(folder(24), "c", mapped), "in use");
  auto prefix = std::make_shared<ImagePrefix>();
  prefix->hidden = at::zeros({3, 256});
  {
    PrefixStore store({running, ""}, at::kCPU);
    for (uint64_t i = 0; i < 9; ++i) store.save({i, i}, prefix);
  }
  CHECK(copies().size() == 1);
  uint64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(files.dir)) bytes += file.file_size();
  CHECK(bytes <= 24 * kKib + 32);  // the seed
  CHECK(packed(running, "b", mapped) == "");
  CHECK(mapped);
  // Another start may allow less: then it is not read, and leaves when nobody has it any more.
  test::check_mentions(packed(folder(16), "b", mapped), "more than the");
  CHECK(!mapped);
  CHECK(copies().size() == 1);
  running = nullptr;
  CHECK(folder(16)->make_room(0));
  CHECK(copies().empty());
}
