// Image prefixes on disk: answers are those without, and nothing but a whole file of one's own is used.
#include <fstream>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/io/safetensors.h"
#include "io/scratch.h"

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
namespace fs = std::filesystem;

namespace {

EngineOptions options(const fs::path& dir) {
  return {.model = test::tiny_dir() / "model",
          .new_modules = {(test::tiny_dir() / "new_modules").string()},
          .dtype = "fp32",
          .device = test::device_name(),
          .cache_mb = 256,
          .cache_dir = dir.string()};
}

// What one process asks; its files are written when it ends.
std::vector<Answer> asked(const EngineOptions& how, std::vector<Request> requests) {
  const auto engine = Engine::load(how);
  std::vector<Answer> answers;
  for (const Request& request : requests) answers.push_back(engine->ask(request));
  return answers;
}

void same(const Answer& got, const Answer& expected) {
  CHECK(got.ids == expected.ids);
  CHECK(got.keep == expected.keep);
  CHECK(got.kv_bytes == expected.kv_bytes);
}

std::vector<fs::path> files(const fs::path& dir) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path());
  return out;
}

// In a file of its own, as a mapping of the old one stays what it was.
void put(const fs::path& path, const std::string& bytes) {
  fs::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

std::shared_ptr<CacheFolder> folder(const fs::path& dir, uint64_t bytes) {
  return std::make_shared<CacheFolder>(dir, bytes);
}

std::shared_ptr<ImagePrefix> entry(int64_t kib) {
  auto prefix = std::make_shared<ImagePrefix>();
  prefix->hidden = at::zeros({kib, 256});
  return prefix;
}

}  // namespace

TEST_CASE("a question after a restart starts behind the image, whatever the method keeps of it") {
  for (const char* prune : {"none", "glimpse", "divprune", "pyramiddrop", "visionzip", "vscan", "dart",
                            "cdpruner", "divprune(keep=0.5)+glimpse(threshold=0.3)"}) {
    CAPTURE(prune);
    const test::Scratch scratch;
    const auto how = options(scratch / "cache");
    same(asked(how, {row_request(0, prune)})[0], tiny_engine().ask(row_request(0, prune)));
    CHECK(files(scratch / "cache").size() == 1);
    for (const Answer& answer : asked(how, {row_request(1, prune), row_request(2, prune)}))
      CHECK(answer.cached_tokens >= 256);
    same(asked(how, {row_request(1, prune)})[0], tiny_engine().ask(row_request(1, prune)));
    CHECK(files(scratch / "cache").size() == 1);
  }
}

TEST_CASE("the folder is its owner's alone") {
  const test::Scratch scratch;
  asked(options(scratch / "a/cache"), {row_request(0)});
  CHECK((fs::status(scratch / "a/cache").permissions() & fs::perms::mask) == fs::perms::owner_all);
}

TEST_CASE("a damaged file is as if it were not there, and is written anew") {
  const test::Scratch scratch;
  const PrefixKey key{3, 4};
  const PrefixStoreOptions how{folder(scratch / "small", 1 << 20), "origin"};
  const auto load = [&] { return PrefixStore(how, at::kCPU).load(key); };
  const auto prefix = entry(2);
  prefix->rows = {4, 5, 6};
  PrefixStore(how, at::kCPU).save(key, prefix);
  REQUIRE(load() != nullptr);
  CHECK(load()->rows == prefix->rows);
  const fs::path file = files(scratch / "small").at(0);
  const std::string whole = test::contents(file);
  std::vector<std::string> damaged = {"",
                                      whole.substr(0, 7),
                                      "{}",
                                      whole.substr(0, 100),
                                      whole + "x",
                                      whole.substr(0, whole.size() - 1),
                                      std::string(whole.size(), '\0')};
  for (size_t place = 0; place < whole.size(); place += place < 600 ? 1 : 101) {
    damaged.push_back(whole);
    damaged.back()[place] = static_cast<char>(damaged.back()[place] ^ 4);
  }
  Safetensors other = load_safetensors(file);
  other.tensors.erase("rows");
  save_safetensors(scratch / "other.safetensors", other.tensors, other.metadata);
  damaged.push_back(test::contents(scratch / "other.safetensors"));
  for (size_t i = 0; i < damaged.size(); ++i) {
    CAPTURE(i);
    put(file, damaged[i]);
    // A changed letter of the padding or of a name that nobody asks for would not matter.
    if (const auto got = load()) {
      CHECK(got->rows == prefix->rows);
      CHECK(at::equal(got->hidden, prefix->hidden));
    } else {
      CHECK(!fs::exists(file));
    }
  }

  const auto engine = options(scratch / "cache");
  asked(engine, {row_request(0)});
  const fs::path made = files(scratch / "cache").at(0);
  const std::string right = test::contents(made);
  std::string wrong = right;
  wrong[wrong.size() / 2] = static_cast<char>(wrong[wrong.size() / 2] ^ 1);
  put(made, wrong);
  const Answer answer = asked(engine, {row_request(1)})[0];
  CHECK(answer.cached_tokens == 0);
  same(answer, tiny_engine().ask(row_request(1)));
  CHECK(test::contents(made) == right);
}

TEST_CASE("files of another folder, model, dtype or program are not used") {
  const test::Scratch scratch;
  const auto how = options(scratch / "cache");
  asked(how, {row_request(0), row_request(8)});
  const auto uses = [&](const EngineOptions& own) {
    return asked(own, {row_request(1)})[0].cached_tokens > 0;
  };
  CHECK(uses(how));
  EngineOptions other = how;
  other.dtype = "bf16";
  CHECK(!uses(other));
  other = how;
  other.weights = "int8";
  if (at::Device(test::device_name()).is_cpu()) CHECK(!uses(other));
  other = how;
  other.cache_build = "another";
  CHECK(!uses(other));
  // The same name in another folder, and every file under another's name.
  asked(options(scratch / "second"), {row_request(0)});
  put(files(scratch / "second").at(0), test::contents(files(scratch / "cache").at(0)));
  CHECK(!uses(options(scratch / "second")));
  const auto all = files(scratch / "cache");
  std::vector<std::string> contents;
  for (const fs::path& file : all) contents.push_back(test::contents(file));
  for (size_t i = 0; i < all.size(); ++i) put(all[i], contents[(i + 1) % all.size()]);
  const Answer answer = asked(how, {row_request(1)})[0];
  CHECK(answer.cached_tokens == 0);
  same(answer, tiny_engine().ask(row_request(1)));
}

TEST_CASE("the least recently used files leave, and leftovers of killed processes do") {
  const test::Scratch scratch;
  const fs::path dir = scratch / "cache";
  const auto key = [](uint64_t i) { return PrefixKey{i, ~i}; };
  const PrefixStoreOptions small{folder(dir, 40 << 10), ""};
  {
    PrefixStore store(small, at::kCPU);
    const auto keep = [&](uint64_t i) {  // and wait until it is there
      store.save(key(i), entry(10));
      for (int tries = 0; !store.load(key(i)); ++tries) {
        REQUIRE(tries < 5000);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    };
    for (uint64_t i = 0; i < 3; ++i) keep(i);
    CHECK(files(dir).size() == 3);
    CHECK(store.load(key(0)) != nullptr);
    keep(3);
    CHECK(store.load(key(1)) == nullptr);  // 0 was used later
    CHECK(store.load(key(0)) != nullptr);
    store.save(key(4), entry(41));  // more than all may have
  }
  CHECK(files(dir).size() == 3);
  uintmax_t bytes = 0;
  for (const fs::path& file : files(dir)) bytes += fs::file_size(file);
  CHECK(bytes <= 40 << 10);
  std::ofstream(dir / "00000000000000000000000000000000.safetensors.tmp-1-0") << "x";
  fs::last_write_time(dir / "00000000000000000000000000000000.safetensors.tmp-1-0",
                      fs::file_time_type::clock::now() - std::chrono::hours(2));
  std::ofstream(dir / "mine.txt") << "x";
  PrefixStore smaller({folder(dir, 15 << 10), ""}, at::kCPU);
  CHECK(files(dir).size() == 1);
  CHECK(smaller.load(key(0)) != nullptr);
  CHECK(fs::exists(dir / "mine.txt"));
  CHECK(!fs::exists(dir / "00000000000000000000000000000000.safetensors.tmp-1-0"));
}

TEST_CASE("what cannot be a cache is refused") {
  const test::Scratch scratch;
  std::ofstream(scratch / "file") << "x";
  CHECK_THROWS_WITH_AS(folder(scratch / "file", 1 << 20), doctest::Contains("is no folder"), Error);
  fs::create_directory(scratch / "damaged");
  std::ofstream(scratch / "damaged/seed") << "short";
  CHECK_THROWS_WITH_AS(PrefixStore({folder(scratch / "damaged", 1 << 20), ""}, at::kCPU),
                       doctest::Contains("damaged"), Error);
  EngineOptions none = options(scratch / "cache");
  none.cache_mb = 0;
  CHECK_THROWS_WITH_AS(Engine::load(none), doctest::Contains("cache_mb"), Error);
}

TEST_CASE("a disk that fails costs no answer") {
  const test::Scratch scratch;
  const auto engine = Engine::load(options(scratch / "cache"));
  fs::remove_all(scratch / "cache");  // nothing can be written there any more
  same(engine->ask(row_request(0)), tiny_engine().ask(row_request(0)));
  CHECK(engine->ask(row_request(1)).cached_tokens > 0);  // from memory
}
