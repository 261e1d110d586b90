#include "chat_completion.h"

#include <algorithm>
#include <filesystem>

#include "paths.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMostFiles = 5000;  // looked at in a folder

// As a shell reads it: within the quote that it was begun with, or with backslashes.
std::string quoted(const std::string& text, char quote) {
  std::string out = quote ? std::string(1, quote) : "";
  for (const char c : text) {
    const bool special = quote == '\''  ? false
                         : quote == '"' ? c == '"' || c == '\\'
                                        : std::string(" \t\\\"'").find(c) != std::string::npos;
    if (special) out += '\\';
    out += c;
  }
  return out;
}

Completion complete_path(const std::string& line, size_t from) {
  const std::string typed = line.substr(from);
  const char quote = typed.starts_with('"') || typed.starts_with('\'') ? typed[0] : '\0';
  const std::string path = unquoted(typed);
  const size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "" : path.substr(0, slash + 1);
  const std::string begin = path.substr(folder.size());
  std::vector<std::pair<std::string, bool>> files;  // name, whether it is a folder
  std::error_code error;
  size_t looked_at = 0;
  for (fs::directory_iterator entry(folder.empty() ? "." : with_home(folder), error), end;
       !error && entry != end && looked_at < kMostFiles; entry.increment(error), ++looked_at) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(begin) || (name.starts_with('.') && begin.empty())) continue;
    std::error_code ignored;
    files.emplace_back(name, entry->is_directory(ignored));
  }
  std::ranges::sort(files);
  Completion found{from, {}, {}};
  for (const auto& [name, is_folder] : files) {
    const std::string end = is_folder ? "/" : quote ? std::string(1, quote) : "";
    found.texts.push_back(quoted(folder + name, quote) + end);
    found.shown.push_back(name + (is_folder ? "/" : ""));
  }
  return found;
}

Completion complete_methods(const std::string& line, size_t from, const std::vector<PrunerInfo>& methods) {
  const size_t open = line.rfind('('), plus = line.rfind('+');
  const size_t last = plus != line.npos && plus >= from ? plus + 1 : from;
  std::vector<std::string> words;
  if (open != line.npos && open >= last && line.find(')', open) == line.npos) {
    const auto method = std::ranges::find(methods, line.substr(last, open - last), &PrunerInfo::name);
    if (method == methods.end()) return {};
    for (const PrunerInfo::Setting& setting : method->settings) words.push_back(setting.name + "=");
    return complete_word(line, line.find_last_of("(,") + 1, words);
  }
  for (const PrunerInfo& info : methods) words.push_back(info.name);
  if (last == from) words.insert(words.end(), {"auto", "none"});
  return complete_word(line, last, words);
}

}  // namespace

Completion complete_word(const std::string& line, size_t from, const std::vector<std::string>& words) {
  const std::string begin = line.substr(from);
  Completion found{from, {}, {}};
  for (const std::string& word : words)
    if (word.starts_with(begin)) found.texts.push_back(word);
  std::ranges::sort(found.texts);
  found.shown = found.texts;
  return found;
}

Completion complete_argument(const std::string& line, size_t from, ArgumentKind kind,
                             const std::vector<PrunerInfo>& methods) {
  switch (kind) {
    case ArgumentKind::path:
      return complete_path(line, from);
    case ArgumentKind::methods:
      return complete_methods(line, from, methods);
    case ArgumentKind::budget:
      return complete_word(line, from, {"auto"});
    case ArgumentKind::none:
      break;
  }
  return {};
}

}  // namespace glimpse::app
