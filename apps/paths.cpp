#include "paths.h"

#include <cctype>
#include <cstdlib>

#include "glimpse/base/check.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code ignored;
  const bool there = fs::exists(a, ignored);
  if (there != fs::exists(b, ignored)) return false;
  return there ? fs::equivalent(a, b, ignored)
               : fs::weakly_canonical(a, ignored) == fs::weakly_canonical(b, ignored);
}

// "file:///a%20b" is "/a b".
std::string from_url(const std::string& text) {
  std::string out;
  for (size_t i = std::string("file://").size(); i < text.size(); ++i) {
    const bool code = text[i] == '%' && i + 2 < text.size() && std::isxdigit(text[i + 1]) != 0 &&
                      std::isxdigit(text[i + 2]) != 0;
    out += code ? static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16)) : text[i];
    if (code) i += 2;
  }
  return out;
}

}  // namespace

void check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& [name, path] = outputs[i];
    for (const NamedPath& input : inputs)
      check(!same_file(path, input.path), name, " ", path.string(), " is ", input.name,
            " itself; name another file to write");
    for (size_t k = 0; k < i; ++k)
      check(!same_file(path, outputs[k].path), name, " and ", outputs[k].name, " would both be written to ",
            path.string(), "; name two files");
  }
}

std::string unquoted(const std::string& text) {
  std::string out;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == 0 && (c == '"' || c == '\''))
      quote = c;
    else if (c == quote)
      quote = 0;
    else if (c == '\\' && quote != '\'' && i + 1 < text.size())
      out += text[++i];
    else
      out += c;
  }
  return out;
}

fs::path numbered(const fs::path& file, size_t index, size_t count) {
  if (count == 1) return file;
  return file.parent_path() /
         (file.stem().string() + "." + std::to_string(index + 1) + file.extension().string());
}

std::string with_home(const std::string& path) {
  const char* const home = std::getenv("HOME");
  return home && (path == "~" || path.starts_with("~/")) ? home + path.substr(1) : path;
}

std::string pasted_path(const std::string& text) {
  constexpr const char* spaces = " \t\r";
  const size_t first = text.find_first_not_of(spaces);
  const std::string trimmed =
      first == text.npos ? "" : text.substr(first, text.find_last_not_of(spaces) + 1 - first);
  const std::string plain = unquoted(trimmed);
  std::error_code ignored;
  for (const std::string& name : {text, trimmed, plain})
    if (fs::exists(name, ignored)) return name;
  for (const std::string& name : {trimmed, plain})
    if (name.starts_with("file://")) return from_url(name);
  return with_home(plain);
}

}  // namespace glimpse::app
