#include <unistd.h>

#include <iostream>

#include "flags.h"
#include "glimpse/engine/session.h"
#include "glimpse/image/decode.h"

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

// Asks and prints; false for an answer that was cancelled.
bool ask(Session& session, const std::string& question, std::stop_token stop) {
  const Answer answer = session.ask(question, std::move(stop),
                                    [](const std::string& text) { std::cout << text << std::flush; });
  std::cout << std::endl;
  if (isatty(STDERR_FILENO)) std::cerr << summary(answer) << "\n";
  return answer.finish_reason != "cancelled";
}

int run(const ChatFlags& flags, Interrupt& interrupt) {
  const auto engine = Engine::load(flags.common.engine);
  Session session(*engine, flags.common.request(*engine));
  for (const std::string& path : flags.images) add_image(session, path, flags.common.bounds);
  const bool person = isatty(STDIN_FILENO);
  if (person) std::cerr << kHelp << "\n";
  for (std::string line;;) {
    if (person) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line)) break;
    if (line.ends_with('\r')) line.pop_back();
    try {
      if (line.empty()) continue;
      if (line == "/quit" || line == "/exit") break;
      if (line == "/clear") {
        session.clear();
      } else if (line == "/help") {
        std::cerr << kHelp << "\n";
      } else if (line.starts_with("/image ")) {
        add_image(session, line.substr(7), flags.common.bounds);
      } else if (line.starts_with('/')) {
        fail("unknown command '", line, "'. ", kHelp);
      } else {
        const bool answered = ask(session, line, interrupt.arm());
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
  app.footer(kHelp);
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
