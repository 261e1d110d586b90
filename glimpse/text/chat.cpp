#include "glimpse/text/chat.h"

#include <algorithm>
#include <array>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

constexpr std::array<std::string_view, 3> roles = {"system", "user", "assistant"};

}  // namespace

std::string ChatFormat::render(const std::vector<Message>& messages, bool add_generation_prompt) const {
  std::string prompt;
  for (const Piece& piece : pieces(messages, add_generation_prompt)) prompt += piece.text;
  return prompt;
}

std::vector<Piece> QwenChat::pieces(const std::vector<Message>& messages, bool add_generation_prompt) const {
  std::vector<Piece> out;
  const auto special = [&](const char* token) { out.push_back({true, token}); };
  const auto text = [&](std::string_view words) {
    if (out.empty() || out.back().special) out.push_back({false, ""});
    out.back().text += words;
  };
  const auto begin = [&](std::string_view role) {
    special("<|im_start|>");
    text(role);
    text("\n");
  };
  const auto end = [&] {
    special("<|im_end|>");
    text("\n");
  };

  check(!messages.empty(), "a conversation needs at least one message");
  if (messages.front().role != "system") {
    begin("system");
    text("You are a helpful assistant.");
    end();
  }
  int images = 0;
  for (const Message& message : messages) {
    check(std::ranges::find(roles, message.role) != roles.end(), "message role \"", message.role,
          "\", expected system, user or assistant");
    begin(message.role);
    for (const Part& part : message.parts) {
      if (part.kind == Part::Kind::text) {
        text(part.text);
        continue;
      }
      ++images;
      if (add_vision_id_) text(concat("Picture ", images, ": "));
      special("<|vision_start|>");
      special("<|image_pad|>");
      special("<|vision_end|>");
    }
    end();
  }
  if (add_generation_prompt) begin("assistant");
  return out;
}

std::vector<int64_t> encode_chat(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                 bool add_generation_prompt, const ChatFormat& format) {
  std::vector<int64_t> ids;
  for (const Piece& piece : format.pieces(messages, add_generation_prompt)) {
    if (piece.special) {
      const auto id = tokenizer.token_id(piece.text);
      check(id.has_value(), "the tokenizer has no token \"", piece.text, "\", which the chat format needs");
      ids.push_back(*id);
    } else {
      const auto words = tokenizer.encode(piece.text, /*parse_special=*/false);
      ids.insert(ids.end(), words.begin(), words.end());
    }
  }
  return ids;
}

}  // namespace glimpse
