#include <unistd.h>

#include <iostream>

#include "flags.h"
#include "glimpse/engine/session.h"
#include "glimpse/image/decode.h"
#include "paths.h"

namespace glimpse::app {

namespace {

constexpr const char* kHelp =
    "Type a question. Commands: /image FILE adds an image to the next question, /clear forgets the "
    "conversation, "
    "/quit leaves, /help shows this.";

struct ChatFlags {
  CommonFlags common;
  std::vector<std::string> images;
};

void add_image(Session& session, const std::string& path, const ImageBounds& bounds) {
  check(path != "-", "image -: standard input holds the questions");
  session.add_image(load_image(path, bounds.decode_options()));
}

// What is typed, without the mark that some editors put before a file's text and Windows' line ends.
bool read_line(bool first, std::string& line) {
  if (!std::getline(std::cin, line)) return false;
  if (first && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

// "/image a.jpg" is the command "/image" about " a.jpg"; anything else than a command is a question.
std::pair<std::string, std::string> split_command(const std::string& line) {
  const size_t begin = std::min(line.find_first_not_of(" \t"), line.size());
  if (line.substr(begin, 1) != "/") return {"", line};
  const size_t end = std::min(line.find_first_of(" \t", begin), line.size());
  const size_t rest = std::min(end + 1, line.size());
  return {line.substr(begin, end - begin), line.substr(rest)};
}

// Asks and prints; false for an answer that was cancelled.
bool ask(Session& session, const std::string& question, int64_t max_new_tokens, std::stop_token stop) {
  const Answer answer = session.ask(question, std::move(stop),
                                    [](const std::string& text) { std::cout << text << std::flush; });
  std::cout << std::endl;
  if (isatty(STDERR_FILENO)) std::cerr << summary(answer) << "\n";
  std::cerr << cut_note(answer, max_new_tokens);
  return answer.finish_reason != "cancelled";
}

int run(ChatFlags& flags, Interrupt& interrupt) {
  flags.common.fetching.provide(flags.common.engine, interrupt);
  const auto engine = Engine::load(flags.common.engine);
  Session session(*engine, flags.common.request(*engine));
  for (const std::string& path : flags.images) add_image(session, path, flags.common.bounds);
  const bool person = isatty(STDIN_FILENO);
  if (person) std::cerr << kHelp << "\n";
  for (bool first = true;; first = false) {
    if (person) std::cerr << "> " << std::flush;
    std::string line;
    if (!read_line(first, line)) break;
    const auto [command, rest] = split_command(line);
    const bool alone = rest.find_first_not_of(" \t") == rest.npos;
    try {
      if (command.empty() && alone) continue;
      if (alone && (command == "/quit" || command == "/exit")) break;
      if (alone && command == "/clear") {
        session.clear();
      } else if (alone && command == "/help") {
        std::cerr << kHelp << "\n";
      } else if (!alone && command == "/image") {
        add_image(session, pasted_path(rest), flags.common.bounds);
      } else if (!command.empty()) {
        fail("unknown command '", line, "'. ", kHelp);
      } else {
        const bool answered = ask(session, line, flags.common.max_new_tokens, interrupt.arm());
        interrupt.disarm();
        if (!answered && !person) return 130;
      }
    } catch (const Error& error) {
      interrupt.disarm();
      if (!person) throw;
      std::cerr << "glimpse: " << error.what() << "\n";
    }
  }
  return 0;
}

}  // namespace

std::function<int()> add_chat(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<ChatFlags>();
  app.add_option("-i,--image", flags->images, "image of the first question, repeatable")
      ->type_name("FILE")
      ->allow_extra_args(false)
      ->group("Images");
  flags->common.add(app);
  add_cache_flag(app, flags->common.engine);
  flags->common.reuse = "always";  // further questions about the image are to come
  add_reuse_flag(app, flags->common.reuse);
  app.footer(kHelp);
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
