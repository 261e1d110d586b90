#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/serve/protocol.h"

namespace glimpse::serve {

using Answers = std::vector<std::shared_ptr<const Answer>>;

/// How an API words one answer, whole or as server-sent events that are ready to be sent. Calls come in
/// order.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;
  virtual nlohmann::json whole(const Answers& choices, const nlohmann::json& kept) = 0;
  /// The prompt has run; `kept` comes with the first choice, null with others.
  virtual std::string started(int64_t choice, const nlohmann::json& kept) = 0;
  /// More of the text; `token` if log-probabilities were asked for.
  virtual std::string piece(int64_t choice, const std::string& text, const TokenInfo* token) = 0;
  virtual std::string ended(int64_t choice, const Answer& answer) = 0;
  /// All choices have ended.
  virtual std::string finished(const Answers& choices, const nlohmann::json& kept) = 0;
  virtual std::string failed(const ApiError& error) = 0;
};

/// Of /v1/chat/completions.
std::unique_ptr<AnswerWriter> chat_writer(const ChatCall& call, const Tokenizer& tokenizer);

/// A body of /v1/responses as one of /v1/chat/completions. Errors: ApiError.
nlohmann::json chat_of_responses(const nlohmann::json& body);
/// What read_chat said of that, with the fields called as in the body.
ApiError in_words_of_responses(const ApiError& error, const nlohmann::json& body);
/// Of /v1/responses; `body` is what was asked, parts of which the answer repeats.
std::unique_ptr<AnswerWriter> responses_writer(const ChatCall& call, const nlohmann::json& body);

/// A random name, and the time in seconds since 1970.
std::string random_id(const std::string& prefix);
int64_t unix_time();

}  // namespace glimpse::serve
