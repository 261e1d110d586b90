#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "glimpse/base/json_file.h"
#include "glimpse/serve/writers.h"

namespace glimpse::serve {

using nlohmann::json;

int64_t unix_time() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string random_id(const std::string& prefix) {
  std::array<unsigned char, 12> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  std::string out = prefix;
  for (const unsigned char byte : bytes) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

namespace {

json usage_of(const Answers& choices) {
  int64_t completion = 0;
  for (const auto& choice : choices) completion += std::ssize(choice->ids);
  const Answer& first = *choices.at(0);
  return {{"prompt_tokens", first.prompt_tokens},
          {"completion_tokens", completion},
          {"total_tokens", first.prompt_tokens + completion},
          {"prompt_tokens_details", {{"cached_tokens", first.cached_tokens}}}};
}

json logprobs_of(const std::vector<TokenInfo>& tokens, const Tokenizer& tokenizer) {
  const auto entry = [&](int64_t which, float logprob) {
    const std::string bytes = tokenizer.token_bytes(which);
    json list = json::array();
    for (const char c : bytes) list.push_back(static_cast<uint8_t>(c));
    const int64_t one[] = {which};
    // Unlikely tokens may have no probability at all.
    return json{
        {"token", tokenizer.decode(one, false)}, {"logprob", std::max(logprob, -9999.0F)}, {"bytes", list}};
  };
  json content = json::array();
  for (const TokenInfo& token : tokens) {
    json each = entry(token.id, token.logprob.value_or(0));
    each["top_logprobs"] = json::array();
    for (const auto& [which, logprob] : token.top) each["top_logprobs"].push_back(entry(which, logprob));
    content.push_back(std::move(each));
  }
  return {{"content", content}, {"refusal", nullptr}};
}

class ChatWriter final : public AnswerWriter {
 public:
  ChatWriter(const ChatCall& call, const Tokenizer& tokenizer)
      : model_(call.model),
        tokenizer_(tokenizer),
        logprobs_(call.logprobs),
        include_usage_(call.include_usage) {}

  json whole(const Answers& choices, const json& kept) override {
    json list = json::array();
    for (size_t i = 0; i < choices.size(); ++i)
      list.push_back(
          {{"index", i},
           {"message", {{"role", "assistant"}, {"content", choices[i]->text}, {"refusal", nullptr}}},
           {"logprobs", logprobs_ ? logprobs_of(choices[i]->tokens, tokenizer_) : json()},
           {"finish_reason", choices[i]->finish_reason}});
    json out = object("chat.completion", std::move(list));
    out["usage"] = usage_of(choices);
    out["glimpse"] = kept;
    return out;
  }
  std::string started(int64_t choice, const json& kept) override {
    json chunk = chunk_of(choice, {{"role", "assistant"}, {"content", ""}});
    if (!kept.is_null()) chunk["glimpse"] = kept;
    return event(chunk);
  }
  std::string piece(int64_t choice, const std::string& text, const TokenInfo* token) override {
    json chunk = chunk_of(choice, {{"content", text}});
    if (token) chunk["choices"][0]["logprobs"] = logprobs_of({*token}, tokenizer_);
    return event(chunk);
  }
  std::string ended(int64_t choice, const Answer& answer) override {
    json chunk = chunk_of(choice, json::object());
    chunk["choices"][0]["finish_reason"] = answer.finish_reason;
    return event(chunk);
  }
  std::string finished(const Answers& choices, const json&) override {
    std::string out;
    if (include_usage_) {
      json last = object("chat.completion.chunk", json::array());
      last["usage"] = usage_of(choices);
      out = event(last);
    }
    return out + kDone;
  }
  std::string failed(const ApiError& error) override { return event(error_json(error)) + kDone; }

 private:
  static constexpr const char* kDone = "data: [DONE]\n\n";
  static std::string event(const json& object) { return "data: " + json_text(object) + "\n\n"; }
  json object(const char* kind, json choices) const {
    return {{"id", id_},
            {"object", kind},
            {"created", created_},
            {"model", model_},
            {"choices", std::move(choices)}};
  }
  json chunk_of(int64_t choice, json delta) const {
    const json one = {
        {"index", choice}, {"delta", std::move(delta)}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
    return object("chat.completion.chunk", json::array({one}));
  }

  const std::string id_ = random_id("chatcmpl-"), model_;
  const int64_t created_ = unix_time();
  const Tokenizer& tokenizer_;
  const bool logprobs_, include_usage_;
};

}  // namespace

std::unique_ptr<AnswerWriter> chat_writer(const ChatCall& call, const Tokenizer& tokenizer) {
  return std::make_unique<ChatWriter>(call, tokenizer);
}

}  // namespace glimpse::serve
