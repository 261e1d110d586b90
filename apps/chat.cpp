#include <unistd.h>

#include <iostream>

#include "chat_commands.h"
#include "flags.h"
#include "glimpse/base/ascii.h"
#include "line_editor.h"

namespace glimpse::app {

namespace {

struct ChatFlags {
  CommonFlags common;
  std::vector<MediumFile> media;
  std::string pictures = "auto";
  bool no_history = false;
};

/// Where lines come from: a person at a terminal, who may edit them, or a pipe.
class Lines {
 public:
  Lines(const ChatFlags& flags, ChatCommands& commands) {
    if (!LineEditor::is_possible()) return;
    const auto folder = flags.no_history ? "" : state_dir();
    editor_.emplace(folder.empty() ? folder : folder / "chat_history",
                    [&commands](const std::string& line) { return commands.complete(line); });
    if (flags.pictures == "auto") commands.draw_as_terminal_can(*editor_);
  }
  LineEditor::Outcome next(std::string& line, Interrupt& interrupt) {
    using enum LineEditor::Outcome;
    if (editor_) {
      const auto outcome = editor_->read("> ", line, interrupt.arm());
      if (!told_ && !editor_->history_error().empty()) {
        std::cerr << "glimpse: what is typed is not kept: " << editor_->history_error() << "\n";
        told_ = true;
      }
      return outcome;
    }
    interrupt.disarm();
    if (person_) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line)) return end;
    // Without the mark that some editors put before a file's text, and Windows' line ends.
    if (std::exchange(first_, false) && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);
    if (line.ends_with('\r')) line.pop_back();
    return typed;
  }
  bool person() const { return person_; }

 private:
  std::optional<LineEditor> editor_;
  const bool person_ = isatty(STDIN_FILENO);
  bool first_ = true, told_ = false;
};

// Asks and prints; false for an answer that was cancelled.
bool ask(ChatCommands& commands, const std::string& question, int64_t max_new_tokens, std::stop_token stop) {
  const Answer answer = commands.session().ask(
      question, std::move(stop), [](const std::string& text) { std::cout << text << std::flush; });
  std::cout << std::endl;
  if (answer.finish_reason == "cancelled") return false;
  commands.answered(answer);
  if (isatty(STDERR_FILENO))
    std::cerr << video_lines(answer, commands.session().media()) << summary(answer) << "\n";
  std::cerr << cut_note(answer, max_new_tokens);
  return true;
}

/// What a line of a person leads to: a mistake in it is said and ends nothing.
void forgiving(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    std::cerr << "glimpse: " << trimmed(error.what(), "\n") << "\n";
  } catch (const std::exception& error) {
    std::cerr << "glimpse: internal error, please report it: " << error.what() << "\n";
  }
}

int talk(ChatFlags& flags, ChatCommands& commands, Lines& lines, Interrupt& interrupt) {
  for (std::string line;;) {
    const auto outcome = lines.next(line, interrupt);
    using enum LineEditor::Outcome;
    if (outcome == end) return 0;
    if (outcome == stopped) return 130;
    if (outcome == cleared && line.empty()) std::cerr << "(Ctrl-D or /quit leaves)\n";
    if (outcome == cleared || trimmed(line, " \t").empty()) continue;
    bool answered = true;
    const auto work = [&] {
      if (!commands.run(line)) answered = ask(commands, line, flags.common.max_new_tokens, interrupt.arm());
    };
    if (lines.person())
      forgiving(work);
    else
      work();
    if (commands.leaving()) return 0;
    if (answered) continue;
    if (!lines.person()) return 130;
    std::cerr << "glimpse: stopped; the conversation goes on as if this had not been asked\n";
  }
}

int run(ChatFlags& flags, Interrupt& interrupt) {
  flags.common.provide(interrupt);
  const auto engine = Engine::load(flags.common.engine);
  ChatCommands commands(*engine, flags.common, isatty(STDIN_FILENO));
  if (flags.pictures != "auto")
    commands.draw(flags.pictures == "kitty"   ? PictureProtocol::kitty
                  : flags.pictures == "sixel" ? PictureProtocol::sixel
                                              : PictureProtocol::none);
  Lines lines(flags, commands);
  if (lines.person()) std::cerr << ChatCommands::help();
  for (const MediumFile& file : flags.media) commands.add(file);
  const int status = talk(flags, commands, lines, interrupt);
  interrupt.disarm();
  return status;
}

}  // namespace

std::function<int()> add_chat(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<ChatFlags>();
  add_media_flags(app, flags->media, "image of the first question, repeatable",
                  "video of the first question, or folder of its frames as pictures, repeatable");
  app.add_option("--pictures", flags->pictures,
                 "how /show draws in the terminal: auto asks the terminal, none only writes the file")
      ->check(CLI::IsMember({"auto", "kitty", "sixel", "none"}))
      ->capture_default_str()
      ->group("Terminal");
  app.add_flag("--no-history", flags->no_history,
               "do not read or keep what is typed in $XDG_STATE_HOME/glimpse/chat_history")
      ->group("Terminal");
  flags->common.add(app);
  add_cache_flag(app, flags->common.engine);
  flags->common.reuse = "always";  // further questions about the image are to come
  add_reuse_flag(app, flags->common.reuse);
  app.footer(ChatCommands::help());
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
