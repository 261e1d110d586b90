#include "line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <utility>

#include "glimpse/base/check.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

constexpr int kHistoryLines = 1000;

// Text here is UTF-8, whatever the locale says; libedit goes by the locale.
void use_utf8() {
  if (!std::setlocale(LC_CTYPE, "") || std::string(nl_langinfo(CODESET)) != "UTF-8")
    std::setlocale(LC_CTYPE, "C.UTF-8");
}

// Characters of UTF-8.
int length(const std::string& text) {
  return static_cast<int>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

// What all of them begin with; no character is cut in two.
std::string common_begin(const std::vector<std::string>& texts) {
  std::string common = texts[0];
  for (const std::string& text : texts)
    common.resize(std::ranges::mismatch(common, text).in1 - common.begin());
  const auto is_cut = [&] {
    return std::ranges::any_of(texts, [&](const std::string& text) {
      return text.size() > common.size() && (text[common.size()] & 0xC0) == 0x80;
    });
  };
  while (!common.empty() && is_cut()) common.pop_back();
  return common;
}

// In columns, as many as the terminal has place for.
void print_list(const std::vector<std::string>& texts) {
  constexpr size_t most = 200;
  winsize size{};
  const int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  int widest = 0;
  for (const std::string& text : texts) widest = std::max(widest, length(text));
  const size_t across = std::max(1, columns / (widest + 2)), count = std::min(texts.size(), most),
               down = (count + across - 1) / across;
  std::string out;
  for (size_t row = 0; row < down; ++row) {
    out += "\n";
    for (size_t i = row; i < count; i += down) {
      out += texts[i];
      if (i + down < count) out += std::string(widest + 2 - length(texts[i]), ' ');
    }
  }
  if (count < texts.size()) out += concat("\n... and ", texts.size() - count, " more");
  std::fputs((out + "\n").c_str(), stderr);
}

}  // namespace

struct LineEditor::Parts {
  EditLine* editor = nullptr;
  History *history = nullptr, *last = nullptr;  // all of it; the newest line, for the end of the file
  HistEvent event{};
  fs::path file;
  std::string prompt, history_error;
  std::function<Completion(const std::string&)> complete;
  int wake = -1;
  std::stop_token stop;
  bool cleared = false;

  static Parts& of(EditLine* el) {
    void* parts = nullptr;
    el_get(el, EL_CLIENTDATA, &parts);
    return *static_cast<Parts*>(parts);
  }

  // One character; -1 when it has been stopped.
  int read_character(wchar_t* out) const {
    std::mbstate_t state{};
    for (;;) {
      pollfd files[] = {{STDIN_FILENO, POLLIN, 0}, {wake, POLLIN, 0}};
      if (poll(files, 2, -1) < 0 && errno != EINTR) return -1;
      if (stop.stop_requested()) return -1;
      if (files[0].revents == 0) continue;
      char byte = 0;
      const ssize_t got = ::read(STDIN_FILENO, &byte, 1);
      if (got == 0) return 0;
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (got < 0) return errno == EIO ? 0 : -1;  // the terminal is gone
      const size_t used = std::mbrtowc(out, &byte, 1, &state);
      if (used == static_cast<size_t>(-2)) continue;          // more of it to come
      if (used == static_cast<size_t>(-1)) *out = L'\xFFFD';  // no character
      if (used == 0) *out = L'\0';
      return 1;
    }
  }

  unsigned char tab() const {
    const LineInfo* const info = el_line(editor);
    const std::string before(info->buffer, info->cursor);
    const Completion found = complete(before);
    if (found.texts.empty()) return CC_REFRESH_BEEP;
    const std::string typed = before.substr(found.from), common = common_begin(found.texts);
    if (found.texts.size() > 1 && common.size() <= typed.size()) {
      print_list(found.shown);
      return CC_REDISPLAY;
    }
    el_deletestr(editor, length(typed));
    el_insertstr(editor, common.c_str());
    return found.texts.size() > 1 ? CC_REFRESH_BEEP : CC_REFRESH;
  }

  // Ctrl-C. What was typed stays on the screen: first to its end, which libedit shows before it reads the
  // same key again.
  unsigned char leave() {
    if (std::exchange(cleared, true)) {
      std::fputs("^C\n", stderr);
      return CC_NEWLINE;
    }
    const LineInfoW* const info = el_wline(editor);
    el_cursor(editor, static_cast<int>(info->lastchar - info->cursor));
    el_push(editor, "\x03");
    return CC_REFRESH;
  }

  // Ctrl-Z, which the terminal leaves to us while a line is edited.
  unsigned char suspend() const {
    el_set(editor, EL_PREP_TERM, 0);
    kill(0, SIGTSTP);
    el_set(editor, EL_PREP_TERM, 1);
    return CC_REDISPLAY;
  }

  void open_history(const fs::path& path) {
    history = history_init();
    last = history_init();
    history_(history, H_SETSIZE, kHistoryLines);
    history_(history, H_SETUNIQUE, 1);
    history_(last, H_SETSIZE, 1);
    if (path.empty()) return;
    std::error_code error;
    fs::create_directories(path.parent_path(), error);
    if (error) {
      history_error = concat(path.parent_path().string(), ": ", error.message());
      return;
    }
    const bool there = fs::exists(path, error) && fs::file_size(path, error) > 0;
    const int lines = there ? ::history(history, &event, H_LOAD, path.c_str()) : 0;
    if (lines < 0) {
      history_error = path.string() + " cannot be read, or is no history";
      return;
    }
    file = path;
    if (lines < 2 * kHistoryLines) return;
    const fs::path shorter = path.string() + ".new";
    if (::history(history, &event, H_SAVE, shorter.c_str()) >= 0) fs::rename(shorter, path, error);
  }

  template <class Value>
  void history_(History* which, int what, Value value) {
    ::history(which, &event, what, value);
  }

  // At the file's end, so that programs that run at the same time lose nothing of each other's.
  void remember(const std::string& line) {
    history_(history, H_ENTER, line.c_str());
    if (file.empty()) return;
    std::FILE* const out = std::fopen(file.c_str(), "a");
    if (!out) {
      history_error = concat(file.string(), " cannot be written");
      file.clear();
      return;
    }
    history_(last, H_CLEAR, 0);
    history_(last, H_ENTER, line.c_str());
    std::fseek(out, 0, SEEK_END);  // an empty file gets its head
    history_(last, H_SAVE_FP, out);
    std::fclose(out);
  }

  ~Parts() {
    if (editor) el_end(editor);
    if (history) history_end(history);
    if (last) history_end(last);
    if (wake >= 0) close(wake);
  }
};

bool LineEditor::is_possible() {
  const char* const terminal = std::getenv("TERM");
  return isatty(STDIN_FILENO) && isatty(STDERR_FILENO) && terminal && std::string(terminal) != "dumb";
}

LineEditor::LineEditor(const fs::path& history, std::function<Completion(const std::string&)> complete)
    : parts_(std::make_unique<Parts>()) {
  use_utf8();
  Parts& parts = *parts_;
  parts.complete = std::move(complete);
  parts.open_history(history);
  parts.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  parts.editor = el_init("glimpse", stdin, stderr, stderr);
  check(parts.editor && parts.wake >= 0, "this terminal cannot be set up for the editing of lines");
  EditLine* const el = parts.editor;
  el_set(el, EL_CLIENTDATA, parts_.get());
  el_set(
      el, EL_PROMPT, +[](EditLine* e) { return Parts::of(e).prompt.data(); });
  el_set(el, EL_HIST, ::history, parts.history);
  el_set(el, EL_EDITOR, "emacs");
  el_wset(
      el, EL_GETCFN, +[](EditLine* e, wchar_t* out) { return Parts::of(e).read_character(out); });
  el_set(
      el, EL_ADDFN, "glimpse-complete", "Complete the word before the cursor",
      +[](EditLine* e, int) { return Parts::of(e).tab(); });
  el_set(
      el, EL_ADDFN, "glimpse-suspend", "Suspend the program",
      +[](EditLine* e, int) { return Parts::of(e).suspend(); });
  el_set(
      el, EL_ADDFN, "glimpse-clear", "Leave the line and begin another",
      +[](EditLine* e, int) { return Parts::of(e).leave(); });
  el_set(el, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_set(el, EL_BIND, "\\e[3~", "ed-delete-next-char", nullptr);
  el_set(el, EL_BIND, "\\e[1;5C", "em-next-word", nullptr);
  el_set(el, EL_BIND, "\\e[1;5D", "ed-prev-word", nullptr);
  el_source(el, nullptr);
  el_set(el, EL_BIND, "^I", "glimpse-complete", nullptr);
  el_set(el, EL_BIND, "^C", "glimpse-clear", nullptr);
  el_set(el, EL_BIND, "^Z", "glimpse-suspend", nullptr);
  // Ctrl-C and Ctrl-Z come as keys while a line is edited, and as signals while an answer is made.
  el_set(el, EL_SETTY, "-d", "-isig", nullptr);
  el_set(el, EL_PREP_TERM, 1);
  el_set(el, EL_PREP_TERM, 0);
}

LineEditor::~LineEditor() = default;

LineEditor::Outcome LineEditor::read(const std::string& prompt, std::string& line,
                                     const std::stop_token& stop) {
  Parts& parts = *parts_;
  parts.prompt = prompt;
  parts.cleared = false;
  parts.stop = stop;
  uint64_t drained = 0;
  while (::read(parts.wake, &drained, sizeof drained) > 0) continue;
  const std::stop_callback wake(stop, [&] {
    const uint64_t one = 1;
    if (::write(parts.wake, &one, sizeof one) < 0) return;  // it is awake already
  });
  el_set(parts.editor, EL_PREP_TERM, 1);  // before the prompt: what is typed behind it are keys
  int count = 0;
  const char* const got = el_gets(parts.editor, &count);
  line = got && count > 0 ? std::string(got, count) : "";
  if (line.ends_with('\n')) line.pop_back();
  if (parts.cleared) return Outcome::cleared;
  if (stop.stop_requested() || !got || count <= 0) {
    std::fputs("\n", stderr);
    return stop.stop_requested() ? Outcome::stopped : Outcome::end;
  }
  if (line.find_first_not_of(" \t") != line.npos) parts.remember(line);
  return Outcome::typed;
}

void LineEditor::push(const std::string& typed) {
  el_push(parts_->editor, typed.c_str());
}

const std::string& LineEditor::history_error() const {
  return parts_->history_error;
}

fs::path state_dir() {
  // As its specification says, a relative path counts as none.
  if (const char* const given = std::getenv("XDG_STATE_HOME"); given && *given == '/')
    return fs::path(given) / "glimpse";
  const char* const home = std::getenv("HOME");
  return home && *home ? fs::path(home) / ".local/state/glimpse" : fs::path();
}

}  // namespace glimpse::app
