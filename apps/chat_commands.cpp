#include "chat_commands.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>

#include "chat_completion.h"
#include "glimpse/base/ascii.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/engine/kept_pictures.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/eval/grid.h"
#include "glimpse/image/video_out.h"
#include "paths.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

// "/image a.jpg" is the command "/image" about " a.jpg"; anything else than a command is a question.
std::pair<std::string, std::string> split_command(const std::string& line) {
  const size_t begin = std::min(line.find_first_not_of(" \t"), line.size());
  if (line.substr(begin, 1) != "/") return {"", line};
  const size_t end = std::min(line.find_first_of(" \t", begin), line.size());
  const size_t rest = std::min(end + 1, line.size());
  return {line.substr(begin, end - begin), line.substr(rest)};
}

// A folder of this process alone.
fs::path new_folder() {
  std::string name = (fs::temp_directory_path() / "glimpse-XXXXXX").string();
  check(mkdtemp(name.data()) != nullptr, name, ": cannot be made; name a file, as in /show kept.png");
  return name;
}

}  // namespace

struct ChatCommands::Command {
  enum class Argument { none, may, must };
  std::string name, argument, about;
  Argument takes;
  ArgumentKind kind;
  void (*run)(ChatCommands&, const std::string&);
};

const std::vector<ChatCommands::Command>& ChatCommands::commands() {
  using enum Command::Argument;
  static const std::vector<Command> all = {
      {"/image", "FILE", "adds an image to the next question", must, ArgumentKind::path,
       [](ChatCommands& chat, const std::string& rest) {
         chat.add({false, pasted_path(rest)});
       }},
      {"/video", "FILE", "adds a video, or a folder of its frames, to the next question", must,
       ArgumentKind::path,
       [](ChatCommands& chat, const std::string& rest) {
         chat.add({true, pasted_path(rest)});
       }},
      {"/prune", "METHODS", "prunes by these, as --prune does; alone: what is in use", may,
       ArgumentKind::methods, [](ChatCommands& chat, const std::string& rest) { chat.prune(rest); }},
      {"/keep", "SHARE", "keeps this fraction or number of the visual tokens, or auto", may,
       ArgumentKind::budget, [](ChatCommands& chat, const std::string& rest) { chat.keep(rest); }},
      {"/show", "FILE", "draws what the last answer kept of images and videos", may, ArgumentKind::path,
       [](ChatCommands& chat, const std::string& rest) { chat.show(rest); }},
      {"/clear", "", "forgets the conversation", none, ArgumentKind::none,
       [](ChatCommands& chat, const std::string&) { chat.clear(); }},
      {"/help", "", "shows this", none, ArgumentKind::none,
       [](ChatCommands&, const std::string&) { std::cerr << help(); }},
      {"/quit", "", "leaves, as /exit and the end of the input do", none, ArgumentKind::none,
       [](ChatCommands& chat, const std::string&) { chat.leaving_ = true; }},
      {"/exit", "", "", none, ArgumentKind::none,
       [](ChatCommands& chat, const std::string&) { chat.leaving_ = true; }},
  };
  return all;
}

ChatCommands::ChatCommands(const Engine& engine, const CommonFlags& flags, bool person)
    : engine_(engine), flags_(flags), person_(person), session_(engine, flags.request(engine)) {}

std::string ChatCommands::help() {
  std::string text = "Type a question. Commands:\n";
  for (const Command& command : commands()) {
    if (command.about.empty()) continue;
    const bool optional = command.takes == Command::Argument::may;
    std::string head = command.name;
    if (!command.argument.empty()) head += optional ? " [" + command.argument + "]" : " " + command.argument;
    constexpr size_t width = 18;
    head.resize(std::max(head.size() + 1, width), ' ');
    text += "  " + head + command.about + "\n";
  }
  return text;
}

bool ChatCommands::run(const std::string& line) {
  const auto [name, rest] = split_command(line);
  if (name.empty()) return false;
  const auto found = std::ranges::find(commands(), name, &Command::name);
  check(found != commands().end(), "unknown command '", line, "'; /help lists them");
  const bool alone = trimmed(rest).empty();
  using enum Command::Argument;
  check(alone || found->takes != none, found->name, " takes nothing behind it, got '", trimmed(rest), "'");
  check(!alone || found->takes != must, found->name, " needs something behind it: ", found->name, " ",
        found->argument);
  found->run(*this, rest);
  return true;
}

void ChatCommands::add(const MediumFile& file) {
  check(file.path != "-", file.video ? "video" : "image", " -: standard input holds the questions");
  Medium medium = open_medium(file, flags_);
  if (person_) {
    const auto* const video = std::get_if<Video>(&medium);
    const Size size = size_of(medium);
    std::cerr << file.path << ": " << (video ? shown_of(*video) : concat(size.width, " x ", size.height))
              << " pixels, for the next question\n";
  }
  session_.add(std::move(medium));
}

void ChatCommands::say_pruning() const {
  const auto& [composition, budget] = std::tie(session_.settings().prune, session_.settings().budget);
  const std::string kept = composition == "none" ? "all visual tokens"
                           : budget.keep         ? concat(*budget.keep, " of the visual tokens")
                           : budget.count        ? concat(*budget.count, " visual tokens")
                                                 : "what its own rule says";
  std::cerr << "pruning by " << composition << ", keeping " << kept << "\n";
}

void ChatCommands::keep(const std::string& argument) {
  const std::string text = trimmed(argument);
  if (!text.empty()) {
    const std::string& composition = session_.settings().prune;
    const bool own = text == "auto";
    const auto budget = own ? Budget() : parse_budget(text);
    check(budget.has_value(),
          "/keep: expected a fraction in (0, 1], a number of tokens above 1 or auto, got '", text, "'");
    check(own || takes_budget(composition), "/keep: pruning by ", composition,
          " takes no budget; choose a method that does with /prune");
    session_.set_pruning(composition, *budget);
  }
  if (person_ || text.empty()) say_pruning();
}

void ChatCommands::prune(const std::string& argument) {
  const std::string text = trimmed(argument);
  if (!text.empty()) {
    const Request as_flags = flags_.request(engine_);
    const std::string composition = text == "auto" ? as_flags.prune : text;
    make_pruners(composition, engine_.pruner_context());  // an error changes nothing
    const bool budgeted = takes_budget(composition);
    session_.set_pruning(composition, budgeted ? session_.settings().budget : Budget());
  } else {
    std::string names = "none";
    for (const PrunerInfo& info : known_pruners(engine_.pruner_context())) names += ", " + info.name;
    std::cerr << "known are " << names << ", and several joined by '+'; `glimpse methods` explains them\n";
  }
  if (person_ || text.empty()) say_pruning();
}

PictureProtocol ChatCommands::protocol() {
  if (!protocol_ && editor_) {
    std::string typed;
    protocol_ = ask_for_pictures(typed);
    if (!typed.empty()) editor_->push(typed);
  }
  return protocol_.value_or(PictureProtocol::none);
}

void ChatCommands::show(const std::string& argument) {
  check(last_ && !last_->segments.empty(), "/show: there is no answer about an image yet");
  const std::vector<Medium>& media = session_.media();
  fs::path file = pasted_path(argument);
  if (file.empty()) {
    if (folder_.empty()) folder_ = new_folder();
    file = folder_ / concat("kept-", ++shown_, ".png");
  }
  for (size_t i = 0; i < media.size(); ++i) {
    const std::vector<KeptGrid> grids = kept_grids(last_->segments, last_->keep, static_cast<int64_t>(i));
    const auto [kept, all] = count_kept(*last_, i);
    const fs::path name = numbered(file, i, media.size());
    if (is_video_name(name)) {
      save_kept(media[i], grids, KeptStyle::overlay, name);
    } else {
      const Image picture = kept_picture(media[i], grids, KeptStyle::overlay);
      save_png(picture, name);
      std::cerr << picture_sequence(picture, protocol());
    }
    std::cerr << name.string() << ": " << kept << " of " << all << " visual tokens kept\n";
  }
}

void ChatCommands::clear() {
  session_.clear();
  last_.reset();
  if (person_) std::cerr << "the conversation is forgotten\n";
}

Completion ChatCommands::complete(const std::string& line) const {
  const auto [name, rest] = split_command(line);
  if (name.empty()) return {};
  const size_t begin = line.find('/');
  if (begin + name.size() == line.size()) {
    std::vector<std::string> names;
    for (const Command& command : commands())
      names.push_back(command.name + (command.takes == Command::Argument::must ? " " : ""));
    return complete_word(line, begin, names);
  }
  const auto found = std::ranges::find(commands(), name, &Command::name);
  if (found == commands().end()) return {};
  const size_t from = std::min(line.find_first_not_of(" \t", begin + name.size()), line.size());
  return complete_argument(line, from, found->kind, known_pruners(engine_.pruner_context()));
}

}  // namespace glimpse::app
