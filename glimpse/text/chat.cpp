#include "glimpse/text/chat.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

constexpr std::array<std::string_view, 3> roles = {"system", "user", "assistant"};
constexpr std::string_view short_answer = "\nAnswer the question using a single word or phrase.";

// The last message of the user, or null.
const Message* asking(const std::vector<Message>& messages) {
  const auto last = std::find_if(messages.rbegin(), messages.rend(),
                                 [](const Message& message) { return message.role == "user"; });
  return last == messages.rend() ? nullptr : &*last;
}

// Pieces as they are written; neighbouring texts become one.
class Script {
 public:
  void special(const char* token) { pieces_.push_back({true, token}); }
  void text(std::string_view words, bool asked = false) {
    if (words.empty()) return;
    if (pieces_.empty() || pieces_.back().special) pieces_.push_back({false, ""});
    Piece& piece = pieces_.back();
    if (asked) {
      if (piece.question_begin == piece.question_end) piece.question_begin = piece.text.size();
      piece.question_end = piece.text.size() + std::min(words.find(short_answer), words.size());
    }
    piece.text += words;
  }
  std::vector<Piece> done() { return std::move(pieces_); }

 private:
  std::vector<Piece> pieces_;
};

void check_messages(const std::vector<Message>& messages) {
  check(!messages.empty(), "a conversation needs at least one message");
  for (const Message& message : messages)
    check(std::ranges::find(roles, message.role) != roles.end(), "message role \"", message.role,
          "\", expected system, user or assistant");
}

std::string seconds_text(double seconds) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "<%.1f seconds>", seconds);
  return text.data();
}

// "USER: ", "ASSISTANT: " or, for the system, nothing.
std::string_view vicuna_role(const Message& message) {
  return message.role == "user" ? "USER: " : message.role == "assistant" ? "ASSISTANT: " : "";
}

}  // namespace

std::string ChatFormat::render(const std::vector<Message>& messages, bool add_generation_prompt) const {
  std::string prompt;
  for (const Piece& piece : pieces(messages, add_generation_prompt)) prompt += piece.text;
  return prompt;
}

int64_t ChatFormat::special_id(const Tokenizer& tokenizer, const std::string& token) const {
  const auto id = tokenizer.token_id(token);
  check(id.has_value(), "the tokenizer has no token \"", token, "\", which the chat format needs");
  return *id;
}

std::vector<Piece> QwenChat::pieces(const std::vector<Message>& messages, bool add_generation_prompt) const {
  check_messages(messages);
  Script script;
  const auto begin = [&](std::string_view role) {
    script.special("<|im_start|>");
    script.text(role);
    script.text("\n");
  };
  const auto end = [&] {
    script.special("<|im_end|>");
    script.text("\n");
  };
  if (default_system_ && messages.front().role != "system") {
    begin("system");
    script.text("You are a helpful assistant.");
    end();
  }
  for (const Message& message : messages) {
    begin(message.role);
    for (const Part& part : message.parts) {
      if (part.kind == Part::Kind::text) {
        script.text(part.text, &message == asking(messages));
        continue;
      }
      const auto pad = [&](const char* token) {
        script.special("<|vision_start|>");
        script.special(token);
        script.special("<|vision_end|>");
      };
      if (part.kind == Part::Kind::image) {
        pad("<|image_pad|>");
      } else if (!writes_times_ || part.seconds.empty()) {
        pad("<|video_pad|>");
      } else {
        for (const double seconds : part.seconds) {
          script.text(seconds_text(seconds));
          pad("<|video_pad|>");
        }
      }
    }
    end();
  }
  if (add_generation_prompt) begin("assistant");
  return script.done();
}

std::vector<Piece> VicunaChat::pieces(const std::vector<Message>& messages,
                                      bool add_generation_prompt) const {
  check_messages(messages);
  Script script;
  if (messages.front().role != "system")
    script.text(
        "A chat between a curious " + asker_ +
        " and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
        "answers to the " +
        asker_ + "'s questions. ");
  for (const Message& message : messages) {
    script.text(vicuna_role(message));
    for (const Part& part : message.parts) {
      if (part.kind == Part::Kind::image) {
        script.special("<image>");
        script.text("\n");
      }
      script.text(part.text, &message == asking(messages));
    }
    if (message.role == "assistant")
      script.special("</s>");
    else
      script.text(" ");
  }
  if (add_generation_prompt) script.text("ASSISTANT:");
  return script.done();
}

int64_t VicunaChat::special_id(const Tokenizer& tokenizer, const std::string& token) const {
  return token == "<image>" ? image_id_ : ChatFormat::special_id(tokenizer, token);
}

std::vector<Piece> MistralChat::pieces(const std::vector<Message>& messages, bool) const {
  check_messages(messages);
  Script script;
  std::string system;  // held back: the original code has it within the instruction
  for (const Message& message : messages) {
    if (message.role == "system") {
      system = "<<SYS>>\n";
      for (const Part& part : message.parts) system += part.text;
      system += "\n<</SYS>>\n\n";
      if (!image_id_) script.text(std::exchange(system, {}));
      continue;
    }
    const bool asks = message.role == "user";
    script.text(asks ? "[INST] " : " ");
    if (asks) script.text(std::exchange(system, {}));
    const auto image = [&] {
      script.special("<image>");
      script.text("\n");
    };
    if (!image_id_)
      for (const Part& part : message.parts)
        if (part.kind == Part::Kind::image) image();
    for (const Part& part : message.parts)
      if (part.kind == Part::Kind::text)
        script.text(part.text, &message == asking(messages));
      else if (image_id_)
        image();
    if (asks) {
      script.text(" [/INST]");
    } else {
      if (image_id_) script.text(" ");
      script.special("</s>");
    }
  }
  return script.done();
}

int64_t MistralChat::special_id(const Tokenizer& tokenizer, const std::string& token) const {
  return image_id_ && token == "<image>" ? *image_id_ : ChatFormat::special_id(tokenizer, token);
}

std::vector<Piece> LlavaHfChat::pieces(const std::vector<Message>& messages,
                                       bool add_generation_prompt) const {
  check_messages(messages);
  Script script;
  for (const Message& message : messages) {
    script.text(vicuna_role(message));
    for (const Part& part : message.parts)
      if (part.kind == Part::Kind::image) {
        script.special("<image>");
        script.text("\n");
      }
    for (const Part& part : message.parts)
      if (part.kind == Part::Kind::text) {
        script.text(part.text, &message == asking(messages));
        script.text(" ");
      }
  }
  if (add_generation_prompt) script.text("ASSISTANT:");
  return script.done();
}

std::string question_of(const std::vector<Message>& messages) {
  std::string question;
  if (const Message* const message = asking(messages))
    for (const Part& part : message->parts) question += part.text;
  if (const size_t found = question.find(short_answer); found != question.npos)
    question.erase(found, short_answer.size());
  return question;
}

std::vector<int64_t> encode_chat(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                 bool add_generation_prompt, const ChatFormat& format,
                                 std::vector<int64_t>* question) {
  std::vector<int64_t> ids;
  bool continues = false;
  for (const Piece& piece : format.pieces(messages, add_generation_prompt)) {
    if (piece.special) {
      ids.push_back(format.special_id(tokenizer, piece.text));
      continues = !format.restarts(piece.text);
    } else {
      const auto encode = [&](std::string_view text, bool behind) {
        return tokenizer.encode(text, /*parse_special=*/false, behind);
      };
      const std::vector<int64_t> words = encode(piece.text, continues);
      if (question && piece.question_begin < piece.question_end) {
        // What is before and behind it, encoded alone, has these ids in common with the whole.
        const std::string_view text = piece.text;
        const auto before = encode(text.substr(0, piece.question_begin), continues),
                   behind = encode(text.substr(piece.question_end), true);
        const auto first = std::ranges::mismatch(words, before).in1 - words.begin();
        const auto last =
            words.rend() - std::mismatch(words.rbegin(), words.rend(), behind.rbegin(), behind.rend()).first;
        for (auto i = first; i < last; ++i) question->push_back(std::ssize(ids) + i);
      }
      ids.insert(ids.end(), words.begin(), words.end());
    }
  }
  return ids;
}

}  // namespace glimpse
