#include "glimpse/io/line_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Up to the end of the last whole line.
uintmax_t whole_size(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  uintmax_t whole = 0;
  for (std::string text; std::getline(in, text) && !in.eof();) whole += text.size() + 1;
  return whole;
}

}  // namespace

void visit_whole_lines(const fs::path& file, const std::function<void(const json&)>& visit) {
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return;
  std::ifstream in(file, std::ios::binary);
  size_t number = 0;
  for (std::string text; std::getline(in, text) && !in.eof();) {
    ++number;
    const json line = json::parse(text, nullptr, false);
    check(!line.is_discarded(), file.string(), ":", number, ": not valid JSON");
    visit(line);
  }
}

LineFile::LineFile(const fs::path& file, bool empty)
    : name_(file.string()), lock_(file, LockKind::exclusive) {
  const uintmax_t whole = empty ? 0 : whole_size(file);
  if (fs::file_size(file) != whole) fs::resize_file(file, whole);
}

void LineFile::write(const json& line) {
  const std::string text = json_text(line) + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(lock_.fd(), text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    check(count > 0, name_, ": writing failed: ", std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

}  // namespace glimpse
