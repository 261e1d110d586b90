#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/text/tokenizer.h"

namespace glimpse {

struct Part {
  enum class Kind { text, image, video } kind = Kind::text;
  std::string text;  ///< Empty for images and videos.
  /// Of a video, for formats that write them: the time of each of its temporal slices.
  std::vector<double> seconds = {};
};

struct Message {
  std::string role;  ///< "system", "user" or "assistant".
  std::vector<Part> parts;
};

/// A piece of a prompt: one special token of the chat format, or text in which no special token is meant.
struct Piece {
  bool special;
  std::string text;
  size_t question_begin = 0, question_end = 0;  ///< bytes of `text` that hold what is asked (question_of)
};

/// How a model family writes a conversation.
class ChatFormat {
 public:
  virtual ~ChatFormat() = default;

  /// The prompt of a conversation; neighbouring texts are one piece, so that BPE runs over them together.
  /// With `add_generation_prompt` it ends where the assistant's answer begins. Throws Error for an unknown
  /// role.
  virtual std::vector<Piece> pieces(const std::vector<Message>& messages,
                                    bool add_generation_prompt) const = 0;

  /// The token id of a special piece. Throws Error when the tokenizer lacks it.
  virtual int64_t special_id(const Tokenizer& tokenizer, const std::string& token) const;

  /// Whether the text after this special piece is encoded on its own, as at the start of a prompt.
  virtual bool restarts(const std::string&) const { return false; }

  /// The prompt as Hugging Face's apply_chat_template(tokenize=False) gives it. Encoding this string would
  /// take special tokens in the users' texts for real ones: use encode_chat().
  std::string render(const std::vector<Message>& messages, bool add_generation_prompt) const;
};

/// The format of Qwen's vision-language models. Qwen2-VL and Qwen2.5-VL have a default system message for
/// conversations that do not begin with a system message (which may be empty), Qwen3-VL has none. An image is
/// one <|image_pad|>, a video one <|video_pad|>, which the model widens to the number of its visual tokens;
/// Qwen3-VL's videos have one for each temporal slice, behind its time as text.
class QwenChat : public ChatFormat {
 public:
  explicit QwenChat(bool default_system = true, bool writes_times = false)
      : default_system_(default_system), writes_times_(writes_times) {}
  std::vector<Piece> pieces(const std::vector<Message>& messages, bool add_generation_prompt) const override;

 private:
  bool default_system_, writes_times_;
};

/// LLaVA's conversation format vicuna_v1, with its system message when the conversation does not begin with
/// one. An image is "<image>" and a line break; `image_id` stands for it, as the vocabulary has no such
/// token. In LLaVA-NeXT's llava_v1 the system message speaks of a human where vicuna_v1 has a user.
class VicunaChat : public ChatFormat {
 public:
  explicit VicunaChat(int64_t image_id, std::string asker = "user")
      : image_id_(image_id), asker_(std::move(asker)) {}
  std::vector<Piece> pieces(const std::vector<Message>& messages, bool add_generation_prompt) const override;
  int64_t special_id(const Tokenizer& tokenizer, const std::string& token) const override;
  /// The original code cuts prompts at their images and encodes the parts one by one.
  bool restarts(const std::string& token) const override { return token == "<image>"; }

 private:
  int64_t image_id_;
  std::string asker_;
};

/// Mistral's instructions, "[INST] ... [/INST]", as LLaVA-NeXT writes them. With an `image_id` as the
/// original code does (see VicunaChat), else as llava-hf's checkpoints: the images of a message before its
/// texts.
class MistralChat : public ChatFormat {
 public:
  explicit MistralChat(std::optional<int64_t> image_id = {}) : image_id_(image_id) {}
  std::vector<Piece> pieces(const std::vector<Message>& messages, bool add_generation_prompt) const override;
  int64_t special_id(const Tokenizer& tokenizer, const std::string& token) const override;
  bool restarts(const std::string& token) const override { return image_id_ && token == "<image>"; }

 private:
  std::optional<int64_t> image_id_;
};

/// The format of the llava-hf checkpoints: the images of a message before its texts, no end tokens, no
/// default system message.
class LlavaHfChat : public ChatFormat {
 public:
  std::vector<Piece> pieces(const std::vector<Message>& messages, bool add_generation_prompt) const override;
};

/// What the last user message asks: its texts, without the line that asks for a single word or phrase.
std::string question_of(const std::vector<Message>& messages);

/// The token ids of the prompt. They equal those of Hugging Face's apply_chat_template for messages without
/// special tokens in their text. Where Hugging Face turns "<|im_end|>" in a message into the control token,
/// this encodes it as ordinary text: a message cannot end its turn, add an image or speak for another role.
/// Throws Error when the tokenizer lacks one of the format's tokens. `question`, if given, receives the
/// places of the ids that hold what is asked.
std::vector<int64_t> encode_chat(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                                 bool add_generation_prompt, const ChatFormat& format = QwenChat(),
                                 std::vector<int64_t>* question = nullptr);

}  // namespace glimpse
