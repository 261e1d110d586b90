#include "glimpse/score/judge.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <thread>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/web.h"
#include "glimpse/score/http.h"
#include "glimpse/score/scores.h"

namespace glimpse {

namespace {

using nlohmann::json;

// Of the two messages: a cache made with others is asked again.
constexpr const char* kPromptVersion = "1";

constexpr const char* kSystem =
    "You grade answers to questions about a picture that you cannot see. You are given the question, the "
    "correct "
    "answer and the answer to grade. Judge only whether the answer to grade says the same as the correct "
    "one; wording, "
    "length and extra detail that does not contradict it do not matter.\n"
    "Give a number from 0 to 1: 1 for the same meaning, 0 for a different or missing one, in between for an "
    "answer "
    "that is right in part.\n"
    "Reply with one short sentence of reasoning and then, on a line of its own, the number in this form:\n"
    "score: <number>";

// Waits unless a stop is requested.
void wait(double seconds, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any condition;
  std::unique_lock lock(mutex);
  condition.wait_for(lock, stop, std::chrono::duration<double>(seconds), [] { return false; });
}

std::string head(const std::string& text) {
  return text.size() <= 300 ? text : text.substr(0, 300) + " ...";
}

bool worth_another_try(const HttpReply& reply) {
  return reply.status == 0 || reply.status == 408 || reply.status == 409 || reply.status == 429 ||
         reply.status >= 500;
}

// The text of a chat completion; nothing if it is none.
std::optional<std::string> reply_text(const HttpReply& reply) {
  const json body = json::parse(reply.body, nullptr, false);
  const json& choices = member(body, "choices");
  if (choices.is_array() && !choices.empty()) {
    const json& content = member(member(choices[0], "message"), "content");
    if (content.is_string()) return content.get<std::string>();
    if (content.is_null() && choices[0].contains("message")) return "";
  }
  return {};
}

}  // namespace

json judge_messages(const JudgeQuestion& q) {
  const std::string text =
      concat("Question: ", q.question, "\nCorrect answer: ", q.right, "\nAnswer to grade: ", q.answer);
  return json::array({{{"role", "system"}, {"content", kSystem}}, {{"role", "user"}, {"content", text}}});
}

void check_judge(const JudgeOptions& options) {
  check(!web_origin(options.url).empty(), "judge: expected an address http://... or https://..., got '",
        options.url, "'");
  check(!options.model.empty(),
        "judge: no model is named; --judge-model says which one the server is to ask");
}

Judge::Judge(JudgeOptions options, const std::filesystem::path& cache)
    : options_(std::move(options)), cache_name_(cache.string()) {
  check_judge(options_);
  while (options_.url.ends_with('/')) options_.url.pop_back();
  if (!options_.url.ends_with("/chat/completions")) options_.url += "/chat/completions";
  out_.emplace(cache);
  visit_whole_lines(cache, [&](const json& line) {
    check(line.is_object() && line.contains("key") && member(line, "score").is_number(), cache_name_,
          " exists and is no file of judged answers");
    known_[line["key"].dump()] = line["score"].get<double>();
  });
}

std::string Judge::key(const JudgeQuestion& q) const {
  return json_text(json::array({options_.model, kPromptVersion, q.question, q.right, q.answer}));
}

size_t Judge::unknown(const std::vector<JudgeQuestion>& questions) const {
  std::unordered_map<std::string, int> seen;
  for (const JudgeQuestion& question : questions)
    if (const std::string own = key(question); !known_.contains(own)) seen[own] = 1;
  return seen.size();
}

Judge::Reply Judge::ask(const JudgeQuestion& question, const std::stop_token& stop) const {
  thread_local HttpClient client;
  const std::string body =
      json_text({{"model", options_.model}, {"temperature", 0}, {"messages", judge_messages(question)}});
  std::map<std::string, std::string> headers = {{"Content-Type", "application/json"}};
  if (!options_.key.empty()) headers["Authorization"] = "Bearer " + options_.key;
  double pause = options_.first_wait_s;
  for (int tried = 1;; ++tried) {
    const HttpReply reply = client.post(options_.url, body, headers, options_.timeout_s, stop);
    if (stop.stop_requested()) throw Stopped();
    if (reply.status >= 200 && reply.status < 300) {
      if (const auto text = reply_text(reply)) return {*text, judge_score(*text)};
      if (tried == options_.tries) return {reply.body, {}};
    } else {
      const std::string what =
          reply.status ? concat("status ", reply.status, ": ", head(reply.body)) : reply.problem;
      check(worth_another_try(reply), "judge ", options_.url, " refuses: ", what);
      check(tried < options_.tries, "judge ", options_.url, ": no reply after ", tried, " tries: ", what);
    }
    wait(std::min(60.0, std::max(pause, reply.retry_after_s)), stop);
    if (stop.stop_requested()) throw Stopped();
    pause *= 2;
  }
}

void Judge::keep(const JudgeQuestion& question, const Reply& reply) {
  const std::string own = key(question);
  if (reply.score) out_->write({{"key", json::parse(own)}, {"reply", reply.text}, {"score", *reply.score}});
  known_[own] = reply.score;
}

std::vector<std::optional<double>> Judge::scores(const std::vector<JudgeQuestion>& questions,
                                                 const std::stop_token& stop,
                                                 const std::function<void()>& step) {
  std::vector<const JudgeQuestion*> open;
  std::unordered_map<std::string, int> seen;
  for (const JudgeQuestion& question : questions)
    if (const std::string own = key(question); !known_.contains(own) && seen.emplace(own, 1).second)
      open.push_back(&question);
  std::atomic<size_t> next = 0;
  std::stop_source failed;
  const std::stop_callback passed_on(stop, [&] { failed.request_stop(); });
  std::exception_ptr error;
  const auto work = [&] {
    try {
      for (size_t i = next++; i < open.size() && !failed.stop_requested(); i = next++) {
        const Reply reply = ask(*open[i], failed.get_token());
        const std::lock_guard lock(mutex_);
        keep(*open[i], reply);
        step();
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error) error = std::current_exception();
      failed.request_stop();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < std::min<size_t>(open.size(), options_.jobs); ++i) threads.emplace_back(work);
  }
  if (stop.stop_requested()) throw Stopped();
  if (error) std::rethrow_exception(error);
  std::vector<std::optional<double>> out;
  for (const JudgeQuestion& question : questions) out.push_back(known_.at(key(question)));
  return out;
}

}  // namespace glimpse
