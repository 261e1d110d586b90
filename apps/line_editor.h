#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace glimpse::app {

/// What the tab key can put in place of a line's end.
struct Completion {
  size_t from = 0;                 ///< where in the line it begins, in bytes
  std::vector<std::string> texts;  ///< what may stand there, each as a whole
  std::vector<std::string> shown;  ///< the same as shown in a list
};

/// Lines typed by a person at a terminal: editing with the keys of the user's ~/.editrc (libedit), a history
/// that outlives the program, completion. What is shown goes to standard error, so that standard output is
/// for answers.
class LineEditor {
 public:
  /// Whether standard input and error are a terminal on which lines can be edited.
  static bool is_possible();

  /// `history`: a file, made when the first line is typed; an empty path: none. `complete` is given the line
  /// up to the cursor.
  LineEditor(const std::filesystem::path& history, std::function<Completion(const std::string&)> complete);
  ~LineEditor();

  enum class Outcome { typed, cleared, end, stopped };
  /// Reads the next line; `line` is without its end. `cleared`: Ctrl-C, of a line that had something if
  /// `line` is not empty. `end`: Ctrl-D, or the terminal is gone. `stopped`: by `stop`.
  Outcome read(const std::string& prompt, std::string& line, const std::stop_token& stop);
  /// Takes these bytes as typed next.
  void push(const std::string& typed);
  /// What keeps the history from being kept, "" for nothing.
  const std::string& history_error() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// Where a program keeps what it remembers of its user: $XDG_STATE_HOME/glimpse, else ~/.local/state/glimpse;
/// an empty path where there is no home.
std::filesystem::path state_dir();

}  // namespace glimpse::app
