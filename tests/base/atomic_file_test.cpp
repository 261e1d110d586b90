#include "glimpse/base/atomic_file.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "glimpse/base/atomic_dir.h"
#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

namespace fs = std::filesystem;
using glimpse::AtomicDirectory;
using glimpse::AtomicFile;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("glimpse_atomic_" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  size_t files() const { return std::distance(fs::directory_iterator(path), fs::directory_iterator()); }
};

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("a committed file replaces the old one and leaves nothing else") {
  const Folder folder;
  const fs::path path = folder.path / "a.txt";
  for (const std::string text : {"first", "second\n"}) {
    AtomicFile file(path);
    file.stream() << text;
    file.commit();
    CHECK(contents(path) == text);
    CHECK(folder.files() == 1);
  }
}

TEST_CASE("a link stays one, and its file is written") {
  const Folder folder;
  fs::create_directories(folder.path / "sub");
  fs::create_symlink("sub/file", folder.path / "link");
  fs::create_symlink(folder.path / "link", folder.path / "chain");
  for (const std::string text : {"not there yet", "replaced"}) {
    AtomicFile file(folder.path / "chain");
    file.stream() << text;
    file.commit();
    CHECK(contents(folder.path / "sub/file") == text);
    CHECK((fs::is_symlink(folder.path / "link") && fs::is_symlink(folder.path / "chain")));
  }
  fs::create_symlink("loop", folder.path / "loop");
  CHECK_THROWS_AS(AtomicFile(folder.path / "loop"), glimpse::Error);
}

TEST_CASE("nothing changes without a commit") {
  const Folder folder;
  const fs::path path = folder.path / "a.txt";
  std::ofstream(path) << "old";
  {
    AtomicFile file(path);
    file.stream() << "new" << std::flush;
    CHECK(contents(path) == "old");
    CHECK(folder.files() == 2);
  }
  CHECK(contents(path) == "old");
  CHECK(folder.files() == 1);
}

TEST_CASE("two writers of one file do not disturb each other") {
  const Folder folder;
  const fs::path path = folder.path / "a.txt";
  AtomicFile one(path), two(path);
  one.stream() << "one";
  two.stream() << "two";
  two.commit();
  CHECK(contents(path) == "two");
  one.commit();
  CHECK(contents(path) == "one");
}

TEST_CASE("places that cannot be written are errors") {
  const Folder folder;
  CHECK_THROWS_WITH_AS(AtomicFile(folder.path / "missing" / "a.txt"), doctest::Contains("missing/a.txt"),
                       glimpse::Error);
  CHECK_THROWS_WITH_AS(AtomicFile(folder.path), doctest::Contains("not a regular file"), glimpse::Error);
  CHECK_THROWS_WITH_AS(AtomicFile("/dev/null"), doctest::Contains("not a regular file"), glimpse::Error);
}

TEST_CASE("a full disk is noticed at commit") {
  const Folder folder;
  AtomicFile file(folder.path / "a.txt");
  file.stream().setstate(std::ios::badbit);
  CHECK_THROWS_WITH_AS(file.commit(), doctest::Contains("could not write all"), glimpse::Error);
}

TEST_CASE("a directory appears with its commit, in place of the old one if asked") {
  const Folder folder;
  const fs::path path = folder.path / "out";
  for (const std::string text : {"first", "second"}) {
    AtomicDirectory out(path / "", text == "second");
    std::ofstream(out.temporary() / text) << text;
    CHECK(!fs::exists(path / text));
    out.commit();
    CHECK(contents(path / text) == text);
    CHECK(folder.files() == 1);
  }
  CHECK(!fs::exists(path / "first"));
  {
    const AtomicDirectory out(path, true);
    std::ofstream(out.temporary() / "third") << "third";
    CHECK(folder.files() == 2);
  }
  CHECK(folder.files() == 1);
  CHECK(contents(path / "second") == "second");
  CHECK_THROWS_WITH_AS(AtomicDirectory(path, false), doctest::Contains("out: it exists"), glimpse::Error);
  CHECK_THROWS_WITH_AS(AtomicDirectory(path / "second", true), doctest::Contains("is no directory"),
                       glimpse::Error);
  CHECK_THROWS_WITH_AS(AtomicDirectory(folder.path / "none/out", false), doctest::Contains("none/out"),
                       glimpse::Error);
}
