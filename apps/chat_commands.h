#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flags.h"
#include "glimpse/engine/session.h"
#include "line_editor.h"
#include "media.h"
#include "terminal_picture.h"

namespace glimpse::app {

/// A conversation on the command line, and what its lines that begin with a slash do. What they have to say
/// goes to standard error. Errors say what was wrong with a line and change nothing.
class ChatCommands {
 public:
  /// `person`: whether somebody reads what is said. The flags must outlive this.
  ChatCommands(const Engine& engine, const CommonFlags& flags, bool person);

  /// Does what the line says; false for one that is no command but a question. `leaving()` says afterwards
  /// whether it was the last.
  bool run(const std::string& line);
  bool leaving() const { return leaving_; }
  Session& session() { return session_; }
  /// Reads an image or opens a video for the next question.
  void add(const MediumFile& file);
  /// The answer that /show is about.
  void answered(const Answer& answer) { last_ = answer; }
  /// How /show draws in the terminal, and who gets what was typed while it asked.
  void draw(PictureProtocol protocol) { protocol_ = protocol; }
  void draw_as_terminal_can(LineEditor& editor) { editor_ = &editor; }

  /// What the tab key can put at the end of a line that begins with a slash.
  Completion complete(const std::string& line) const;
  /// The commands in a few lines.
  static std::string help();

 private:
  struct Command;
  static const std::vector<Command>& commands();
  void keep(const std::string& argument);
  void prune(const std::string& argument);
  void show(const std::string& argument);
  void clear();
  void say_pruning() const;
  PictureProtocol protocol();

  const Engine& engine_;
  const CommonFlags& flags_;
  const bool person_;
  Session session_;
  std::optional<Answer> last_;
  std::filesystem::path folder_;  // of what /show writes without a name
  int shown_ = 0;
  std::optional<PictureProtocol> protocol_;
  LineEditor* editor_ = nullptr;
  bool leaving_ = false;
};

}  // namespace glimpse::app
