#include "glimpse/base/json_file.h"
#include "glimpse/serve/writers.h"

namespace glimpse::serve {

using nlohmann::json;

namespace {

[[noreturn]] void refuse(const std::string& param, const std::string& text) {
  throw ApiError(400, "invalid_request_error", param + ": " + text, "", param);
}

json text_part(const std::string& text) {
  return {
      {"type", "output_text"}, {"text", text}, {"annotations", json::array()}, {"logprobs", json::array()}};
}

class ResponsesWriter final : public AnswerWriter {
 public:
  ResponsesWriter(const ChatCall& call, const json& body) : call_(call), body_(body) {}

  json whole(const Answers& choices, const json& kept) override {
    const Answer& answer = *choices.at(0);
    const bool cut = answer.finish_reason == "length";
    json out = response(cut ? "incomplete" : "completed");
    if (cut) out["incomplete_details"] = {{"reason", "max_output_tokens"}};
    out["output"] =
        json::array({message(cut ? "incomplete" : "completed", json::array({text_part(answer.text)}))});
    const int64_t made = std::ssize(answer.ids);
    out["usage"] = {{"input_tokens", answer.prompt_tokens},
                    {"input_tokens_details", {{"cached_tokens", answer.cached_tokens}}},
                    {"output_tokens", made},
                    {"output_tokens_details", {{"reasoning_tokens", 0}}},
                    {"total_tokens", answer.prompt_tokens + made}};
    out["glimpse"] = kept;
    return out;
  }
  std::string started(int64_t, const json& kept) override {
    json begun = response("in_progress");
    begun["glimpse"] = kept;
    const json empty = message("in_progress", json::array());
    std::string out = event("response.created", {{"response", begun}});
    out += event("response.in_progress", {{"response", begun}});
    out += event("response.output_item.added", {{"output_index", 0}, {"item", empty}});
    return out += event("response.content_part.added", placed({{"part", text_part("")}}));
  }
  std::string piece(int64_t, const std::string& text, const TokenInfo*) override {
    return event("response.output_text.delta", placed({{"delta", text}, {"logprobs", json::array()}}));
  }
  std::string ended(int64_t, const Answer& answer) override {
    const json part = text_part(answer.text);
    const char* const status = answer.finish_reason == "length" ? "incomplete" : "completed";
    std::string out =
        event("response.output_text.done", placed({{"text", answer.text}, {"logprobs", json::array()}}));
    out += event("response.content_part.done", placed({{"part", part}}));
    return out += event("response.output_item.done",
                        {{"output_index", 0}, {"item", message(status, json::array({part}))}});
  }
  std::string finished(const Answers& choices, const json& kept) override {
    const json all = whole(choices, kept);
    return event("response." + all["status"].get<std::string>(), {{"response", all}});
  }
  std::string failed(const ApiError& error) override {
    json out = response("failed");
    out["error"] = {{"code", "server_error"}, {"message", error.what()}};
    return event("response.failed", {{"response", out}});
  }

 private:
  // Numbered in the order of the calls.
  std::string event(const std::string& type, json data) {
    data["type"] = type;
    data["sequence_number"] = sequence_++;
    return "event: " + type + "\ndata: " + json_text(data) + "\n\n";
  }
  json placed(json data) const {
    data["item_id"] = message_id_;
    data["output_index"] = 0;
    data["content_index"] = 0;
    return data;
  }
  json message(const char* status, json content) const {
    return {{"type", "message"},
            {"id", message_id_},
            {"status", status},
            {"role", "assistant"},
            {"content", std::move(content)}};
  }
  json response(const char* status) const {
    const auto asked = [&](const char* key) { return body_.value(key, json()); };
    const SamplingOptions& sampling = call_.request.sampling;
    return {{"id", id_},
            {"object", "response"},
            {"created_at", created_},
            {"status", status},
            {"error", nullptr},
            {"incomplete_details", nullptr},
            {"instructions", asked("instructions")},
            {"max_output_tokens", asked("max_output_tokens")},
            {"metadata", body_.value("metadata", json::object())},
            {"model", call_.model},
            {"output", json::array()},
            {"parallel_tool_calls", true},
            {"previous_response_id", nullptr},
            {"store", false},
            {"temperature", sampling.temperature},
            {"text", {{"format", {{"type", "text"}}}}},
            {"tool_choice", "auto"},
            {"tools", json::array()},
            {"top_p", sampling.top_p},
            {"truncation", "disabled"},
            {"usage", nullptr}};
  }

  const ChatCall call_;
  const json body_;
  const std::string id_ = random_id("resp_"), message_id_ = random_id("msg_");
  const int64_t created_ = unix_time();
  int64_t sequence_ = 0;
};

}  // namespace

json chat_of_responses(const json& body) {
  json chat = body;
  for (const char* key : {"messages", "n", "logprobs", "top_logprobs", "stop", "max_tokens",
                          "max_completion_tokens", "text", "response_format"})
    chat.erase(key);
  const auto given = [&](const char* key) { return body.contains(key) && !body[key].is_null(); };
  for (const char* key : {"previous_response_id", "conversation", "prompt"})
    if (given(key)) refuse(key, "this server keeps no conversations; send all of it as input");
  if (given("background") && body["background"] != json(false)) refuse("background", "not supported");
  if (given("text")) {
    if (!body["text"].is_object()) refuse("text", "expected an object");
    const json& format = member(body["text"], "format");
    if (!format.is_null() && (!format.is_object() || (format.contains("type") && format["type"] != "text")))
      refuse("text.format", "only {\"type\": \"text\"} is supported");
  }
  if (given("metadata")) {
    bool texts = body["metadata"].is_object();
    if (texts)
      for (const json& value : body["metadata"]) texts = texts && value.is_string();
    if (!texts) refuse("metadata", "expected an object of texts");
  }
  if (given("max_output_tokens")) chat["max_tokens"] = body["max_output_tokens"];
  json messages = json::array();
  if (given("instructions")) {
    if (!body["instructions"].is_string()) refuse("instructions", "expected a text");
    messages.push_back({{"role", "system"}, {"content", body["instructions"]}});
  }
  const json input = body.value("input", json());
  if (input.is_string())
    messages.push_back({{"role", "user"}, {"content", input}});
  else if (input.is_array() && !input.empty())
    for (const json& item : input) {
      if (!item.is_object() || (item.contains("type") && item["type"] != "message"))
        refuse("input", "only messages are supported");
      messages.push_back(item);
    }
  else
    refuse("input", "expected a text or a list of messages");
  chat["messages"] = std::move(messages);
  return chat;
}

ApiError in_words_of_responses(const ApiError& error, const json& body) {
  std::string param = error.param, text = error.what();
  const auto rename = [&](const std::string& from, const std::string& to) {
    if (!param.starts_with(from)) return;
    if (text.starts_with(param)) text.replace(0, from.size(), to);
    param.replace(0, from.size(), to);
  };
  rename("max_tokens", "max_output_tokens");
  // The instructions are a message before the others.
  if (body.contains("instructions") && body["instructions"].is_string())
    for (size_t i = 1; i <= (body["input"].is_array() ? body["input"].size() : 1); ++i)
      if (param.starts_with(concat("messages[", i, "]"))) {
        rename(concat("messages[", i, "]"), concat("input[", i - 1, "]"));
        break;
      }
  rename("messages", "input");
  return {error.status, error.type, text, error.code, param};
}

std::unique_ptr<AnswerWriter> responses_writer(const ChatCall& call, const json& body) {
  ChatCall known = call;
  known.request.media.clear();
  known.request.messages.clear();
  json kept = body;
  kept.erase("input");
  return std::make_unique<ResponsesWriter>(known, kept);
}

}  // namespace glimpse::serve
