#include "glimpse/serve/protocol.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/eval/grid.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/registry.h"
#include "glimpse/serve/body_fields.h"
#include "glimpse/serve/media_fields.h"

namespace glimpse::serve {

using nlohmann::json;

namespace {

// What cannot be honoured is said, not passed over.
void refuse_unsupported(const json& body) {
  for (const char* key : {"tools", "functions"})
    if (given(body, key) && body[key] != json::array()) wrong(key, "this server calls no tools");
  if (given(body, "response_format")) {
    const json& format = body["response_format"];
    if (!format.is_object() || (format.contains("type") && format["type"] != "text"))
      wrong("response_format", "only {\"type\": \"text\"} is supported");
  }
  if (given(body, "modalities") && body["modalities"] != json::array({"text"}))
    wrong("modalities", "only [\"text\"] is supported");
  if (given(body, "audio")) wrong("audio", "not supported");
}

void read_part(const json& part, const std::string& where, const Served& served, Message& message,
               ChatCall& call) {
  if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
    wrong(where, "expected an object with a \"type\"");
  const std::string type = part["type"];
  if (type == "text" || type == "input_text" || type == "output_text") {
    if (!part.contains("text") || !part["text"].is_string()) wrong(where + ".text", "expected a text");
    message.parts.push_back({Part::Kind::text, part["text"]});
  } else if (type == "image_url" || type == "input_image") {
    if (message.role != "user") wrong(where, "only the user shows images");
    call.media.push_back(medium_of(part, "image_url", where));
    message.parts.push_back({Part::Kind::image, {}});
  } else if (type == "video_url") {
    if (message.role != "user") wrong(where, "only the user shows videos");
    if (!served.videos) wrong(where, "this model knows no videos; send pictures of one");
    call.media.push_back(medium_of(part, "video_url", where));
    message.parts.push_back({Part::Kind::video, {}});
  } else {
    wrong(where + ".type", "'" + type + "' is not supported; text, image_url and video_url are");
  }
}

void read_messages(const json& body, const Served& served, ChatCall& call) {
  if (!body.contains("messages") || !body["messages"].is_array() || body["messages"].empty())
    wrong("messages", "expected a list of at least one message");
  for (size_t i = 0; i < body["messages"].size(); ++i) {
    const json& from = body["messages"][i];
    const std::string where = concat("messages[", i, "]");
    if (!from.is_object() || !from.contains("role") || !from["role"].is_string())
      wrong(where, "expected an object with a \"role\"");
    Message message{from["role"], {}};
    if (message.role == "developer") message.role = "system";
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      wrong(where + ".role", "'" + message.role + "' is not supported; system, user and assistant are");
    const json content = from.value("content", json());
    if (content.is_string())
      message.parts.push_back({Part::Kind::text, content});
    else if (content.is_array())
      for (size_t k = 0; k < content.size(); ++k)
        read_part(content[k], concat(where, ".content[", k, "]"), served, message, call);
    else
      wrong(where + ".content", "expected a text or a list of parts");
    const int64_t videos = videos_of(call), images = std::ssize(call.media) - videos;
    if (images > served.max_images) wrong("messages", concat("more than ", served.max_images, " images"));
    if (videos > served.max_videos) wrong("messages", concat("more than ", served.max_videos, " videos"));
    call.request.messages.push_back(std::move(message));
  }
  // No vocabulary has longer pieces: what cannot fit is not cut into tokens first.
  constexpr int64_t kLongestPiece = 256;
  size_t bytes = 0;
  for (const Message& message : call.request.messages)
    for (const Part& part : message.parts) bytes += part.text.size();
  const int64_t context = served.engine->model().max_positions();
  if (bytes > static_cast<size_t>(kLongestPiece * context))
    throw ApiError(
        400, "invalid_request_error",
        concat("messages: ", bytes, " bytes of text cannot fit the model's context of ", context, " tokens"),
        "context_length_exceeded", "messages");
}

// What OpenAI's and vLLM's clients send in their own way.
json own_value(const std::string& name, const json& value) {
  const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
  if (name == "seed" && value.is_number_integer() && fits)  // theirs is any integer of 64 bits
    return value.get<int64_t>() & ((int64_t{1} << 52) - 1);
  if (name == "top_p" && value == 0) return 1e-6;  // the likeliest alone
  if (name == "top_k" && value == -1) return 0;    // all
  return value;
}

void read_sampling(const json& body, SamplingOptions& sampling) {
  const Fields fields = sampling.fields();
  for (const Field& field : fields.list())
    if (given(body, field.name.c_str()))
      in_field(field.name, [&] { field.set(own_value(field.name, body[field.name])); });
  if (!given(body, "logit_bias")) return;
  if (!body["logit_bias"].is_object()) wrong("logit_bias", "expected an object of token ids and numbers");
  for (const auto& [id, bias] : body["logit_bias"].items()) {
    const bool digits = !id.empty() && id.size() < 10 &&
                        std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || !bias.is_number() || std::abs(bias.get<double>()) > 100)
      wrong("logit_bias", "expected token ids and numbers from -100 to 100");
    sampling.logit_bias[std::stoll(id)] = bias.get<double>();
  }
}

void read_stops(const json& body, Request& request) {
  if (!given(body, "stop")) return;
  const json stops = body["stop"].is_string() ? json::array({body["stop"]}) : body["stop"];
  if (!stops.is_array() || stops.size() > 16) wrong("stop", "expected a text or a list of at most 16");
  for (const json& stop : stops) {
    if (!stop.is_string() || stop.get<std::string>().empty())
      wrong("stop", "expected texts that are not empty");
    request.stop_strings.push_back(stop);
  }
}

void read_lengths(const json& body, const Served& served, ChatCall& call) {
  constexpr int64_t kMost = int64_t{1} << 30;
  call.request.max_new_tokens = number<int64_t>(body, "max_tokens", 1, kMost, served.max_new_tokens);
  call.request.max_new_tokens =
      number<int64_t>(body, "max_completion_tokens", 1, kMost, call.request.max_new_tokens);
  call.choices = number<int64_t>(body, "n", 1, served.max_choices, 1);
  call.request.ignore_eos = flag(body, "ignore_eos");
  call.logprobs = flag(body, "logprobs");
  const auto top = number<int64_t>(body, "top_logprobs", 0, 20, 0);
  if (call.logprobs) call.request.logprobs = top;
  if (given(body, "top_logprobs") && !call.logprobs) wrong("top_logprobs", "needs \"logprobs\": true");
}

// What the fields of "pruning" mean together: names as on the command line.
void read_pruning(const json& body, const Served& served, ChatCall& call) {
  const Engine& engine = *served.engine;
  const auto preset = served.presets.find(call.model);
  std::string chosen = preset == served.presets.end() ? engine.default_prune() : preset->second;
  std::map<std::string, std::string> rule;
  if (given(body, "pruning")) {
    const json& from = body["pruning"];
    if (!from.is_object()) wrong("pruning", "expected an object");
    KeepRule known;
    const Fields fields = known.fields();
    for (const auto& [key, value] : from.items()) {
      const std::string where = "pruning." + key;
      const auto field = std::find_if(fields.list().begin(), fields.list().end(),
                                      [&](const Field& each) { return each.name == key; });
      if (value.is_null()) continue;
      if (key == "prune") {
        if (!value.is_string() || value.get_ref<const std::string&>().size() > 2000)
          wrong(where, "expected a composition such as \"glimpse\" or \"divprune(keep=0.1)\"");
        if (value != "auto") chosen = value;
      } else if (key == "keep") {
        const auto budget = value.is_number() ? parse_budget(value.dump()) : std::nullopt;
        if (!budget) wrong(where, "expected a fraction in (0, 1] or a number of tokens above 1");
        call.request.budget = *budget;
      } else if (key == "reuse") {
        if (!value.is_string()) wrong(where, "expected auto, never or always");
        in_field(where, [&] { call.request.reuse = parse_reuse(value); });
      } else if (key == "return") {
        if (!value.is_array()) wrong(where, "expected a list of keep, scores and overlay");
        for (const json& want : value) {
          if (want != "keep" && want != "scores" && want != "overlay")
            wrong(where, "'" + (want.is_string() ? want.get<std::string>() : want.dump()) +
                             "' is unknown; keep, scores and overlay are known");
          call.wants.insert(want);
        }
      } else if (field != fields.list().end()) {
        in_field(where, [&] {
          field->set(value);
          std::string text;  // as in a composition
          for (const json& item : value.is_array() ? value : json::array({value})) {
            if (!text.empty()) text += '+';
            text += item.is_string() ? item.get<std::string>() : item.dump();
          }
          rule[key] = text;
        });
      } else {
        wrong(where, "unknown; known are prune, keep, reuse, threshold, max_keep, min_keep, anchors, return");
      }
    }
  }
  in_field(rule.empty() ? "pruning.prune" : "pruning." + rule.begin()->first, [&] {
    call.request.prune = with_settings(chosen, rule, rule.empty() ? "" : rule.begin()->first, "prune");
    make_pruners(call.request.prune, engine.pruner_context());
  });
  if (call.request.budget.is_set() && !takes_budget(call.request.prune))
    wrong("pruning.keep", "the method " + call.request.prune + " takes no budget");
}

// What the engine calls --max-pixels a request calls max_pixels.
std::string request_words(std::string text) {
  for (size_t at = text.find("--"); at != text.npos; at = text.find("--", at + 1)) {
    if (at == 0 || (text[at - 1] != ' ' && text[at - 1] != '(')) continue;
    text.erase(at--, 2);
    for (size_t i = at + 1;
         i < text.size() && (std::isalpha(static_cast<unsigned char>(text[i])) || text[i] == '-'); ++i)
      if (text[i] == '-') text[i] = '_';
  }
  return text;
}

}  // namespace

json error_json(const ApiError& error) {
  const auto text = [](const std::string& value) { return value.empty() ? json() : json(value); };
  // What a client sent may be part of it, at any length.
  constexpr size_t longest = 600;
  std::string message = request_words(error.what());
  if (message.size() > longest) message = message.substr(0, longest) + "...";
  return {{"error",
           {{"message", message},
            {"type", error.type},
            {"param", text(error.param)},
            {"code", text(error.code)}}}};
}

ApiError api_error(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ApiError& error) {
    return error;
  } catch (const Error& error) {
    switch (error.kind()) {
      case Error::Kind::wrong:
        return {400, "invalid_request_error", error.what()};
      case Error::Kind::too_large:
        return {400, "invalid_request_error", error.what(), "context_length_exceeded"};
      case Error::Kind::busy:
        return {429, "rate_limit_error", error.what(), "rate_limit_exceeded"};
      case Error::Kind::cancelled:
        return {503, "unavailable_error", error.what()};
      case Error::Kind::internal:
        return {500, "server_error", error.what()};
    }
  } catch (const std::bad_alloc&) {
    return {503, "unavailable_error", "there is not enough memory for this request now"};
  } catch (const std::exception& error) {
    return {500, "server_error", error.what()};
  }
  return {500, "server_error", "unknown error"};
}

std::vector<std::string> Served::ids() const {
  std::vector<std::string> out = {name};
  for (const auto& [id, composition] : presets) out.push_back(id);
  return out;
}

void Served::check_id(const std::string& id) const {
  const std::vector<std::string> known = ids();
  if (std::find(known.begin(), known.end(), id) != known.end()) return;
  std::string list;
  for (const std::string& each : known) list += (list.empty() ? "" : ", ") + each;
  throw ApiError(404, "invalid_request_error", "the model '" + id + "' does not exist; there are " + list,
                 "model_not_found", "model");
}

json parse_body(const std::string& text) {
  json body;
  in_field("", [&] { body = parse_json(text, "the body", 32); });
  if (!body.is_object()) wrong("", "the body is no JSON object");
  // To JSON 1.0 is an integer.
  const auto make_whole = [](json& values) {
    if (!values.is_structured()) return;
    for (json& value : values) {
      if (!value.is_number_float()) continue;
      const double number = value.get<double>();
      if (std::trunc(number) == number && std::abs(number) < 1e15) value = static_cast<int64_t>(number);
    }
  };
  make_whole(body);
  if (const auto io = body.find("media_io_kwargs");
      io != body.end() && io->is_object() && io->contains("video"))
    make_whole((*io)["video"]);
  for (const char* nested : {"pruning", "mm_processor_kwargs", "tokens"})
    if (body.contains(nested)) make_whole(body[nested]);
  return body;
}

ChatCall read_chat(const json& body, const Served& served) {
  refuse_unsupported(body);
  ChatCall call;
  call.model = served.name;
  if (given(body, "model")) {
    if (!body["model"].is_string()) wrong("model", "expected a text");
    call.model = body["model"];
    served.check_id(call.model);
  }
  call.request.sampling = served.engine->default_sampling();
  read_messages(body, served, call);
  read_sampling(body, call.request.sampling);
  read_stops(body, call.request);
  read_lengths(body, served, call);
  call.stream = flag(body, "stream");
  if (given(body, "stream_options")) {
    if (!body["stream_options"].is_object()) wrong("stream_options", "expected an object");
    call.include_usage = flag(body["stream_options"], "include_usage", "stream_options.");
  }
  read_preparation(body, served, call);
  read_pruning(body, served, call);
  return call;
}

json kept_json(const Answer& answer, const ChatCall& call) {
  const std::set<std::string>& wants = call.wants;
  const bool say_whose = shares_media(answer.segments) || videos_of(call) > 0;
  json images = json::array();
  size_t first = 0;
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& segment = answer.segments[i];
    const auto count = static_cast<size_t>(segment.count());
    json image = {{"rows", segment.rows}, {"cols", segment.cols}};
    const std::vector<int64_t> keep = i < answer.keep.size() ? answer.keep[i] : std::vector<int64_t>();
    image["kept_tokens"] = keep.size();
    if (wants.contains("keep")) image["keep"] = keep;
    if (wants.contains("scores") && answer.scores.size() >= first + count)
      image["scores"] =
          std::vector<float>(answer.scores.begin() + static_cast<std::ptrdiff_t>(first),
                             answer.scores.begin() + static_cast<std::ptrdiff_t>(first + count));
    if (say_whose) image["image"] = segment.medium;
    if (call.media.at(static_cast<size_t>(segment.medium)).video) image["seconds"] = segment.seconds;
    first += count;
    images.push_back(std::move(image));
  }
  json out = {{"visual_tokens", answer.visual_tokens},
              {"kept_tokens", answer.kept_tokens},
              {"kept_share", std::round(answer.kept_share() * 1000) / 1000},
              {"cached_tokens", answer.cached_tokens},
              {"kv_bytes", answer.kv_bytes},
              {"pruning", answer.pruning},
              {"images", images},
              {"times_ms", answer.times.to_json()}};
  if (answer.shortcut) out["shortcut"] = *answer.shortcut;
  return out;
}

std::string decode_base64(std::string_view text) {
  std::string clean;
  clean.reserve(text.size() + 4);
  for (const char c : text) {
    if (c == '\n' || c == '\r' || c == ' ' || c == '\t') continue;
    clean += c == '-' ? '+' : c == '_' ? '/' : c;
  }
  while (!clean.empty() && clean.back() == '=') clean.pop_back();
  check(clean.size() % 4 != 1, "not base64: one character too many");
  check(clean.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") ==
            std::string::npos,
        "not base64: a character that it does not have");
  const size_t bytes = clean.size() * 3 / 4;
  while (clean.size() % 4 != 0) clean += '=';
  std::vector<unsigned char> out(clean.size() / 4 * 3);
  EVP_DecodeBlock(out.data(), reinterpret_cast<const unsigned char*>(clean.data()),
                  static_cast<int>(clean.size()));
  return {out.begin(), out.begin() + static_cast<std::ptrdiff_t>(bytes)};
}

}  // namespace glimpse::serve
