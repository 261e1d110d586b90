#include <unistd.h>

#include <iostream>

#include "flags.h"
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

class Conversation {
 public:
  Conversation(const Engine& engine, const CommonFlags& flags) : engine_(engine), flags_(flags) { clear(); }

  void clear() {
    request_ = flags_.request(engine_);
    pending_.clear();
  }

  void add_image(const std::string& path) {
    check(path != "-", "image -: standard input holds the questions");
    pending_.push_back(load_image(path));
  }

  // Asks the next question; a cancelled answer (false) leaves the conversation as it was.
  bool ask(const std::string& question, std::stop_token stop) {
    Request next = request_;
    Message message{"user", {}};
    for (const Image& image : pending_) {
      message.parts.push_back({Part::Kind::image, {}});
      next.images.push_back(image);
    }
    message.parts.push_back({Part::Kind::text, question});
    next.messages.push_back(std::move(message));
    next.stop = stop;
    next.on_text = [](const std::string& text) { std::cout << text << std::flush; };
    const Answer answer = engine_.ask(next);
    std::cout << std::endl;
    if (isatty(STDERR_FILENO)) std::cerr << summary(answer) << "\n";
    if (answer.finish_reason == "cancelled") return false;
    next.messages.push_back({"assistant", {{Part::Kind::text, answer.text}}});
    request_ = std::move(next);
    pending_.clear();
    return true;
  }

 private:
  const Engine& engine_;
  const CommonFlags& flags_;
  Request request_;
  std::vector<Image> pending_;
};

int run(const ChatFlags& flags, Interrupt& interrupt) {
  const auto engine = Engine::load(flags.common.engine);
  Conversation conversation(*engine, flags.common);
  for (const std::string& path : flags.images) conversation.add_image(path);
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
        conversation.clear();
      } else if (line == "/help") {
        std::cerr << kHelp << "\n";
      } else if (line.starts_with("/image ")) {
        conversation.add_image(line.substr(7));
      } else if (line.starts_with('/')) {
        fail("unknown command '", line, "'. ", kHelp);
      } else {
        const bool answered = conversation.ask(line, interrupt.arm());
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
  app.footer(kHelp);
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
