#pragma once

#include <filesystem>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <stop_token>
#include <string>
#include <unordered_map>
#include <vector>

#include "glimpse/io/line_file.h"

namespace glimpse {

/// An answer to be judged.
struct JudgeQuestion {
  std::string question, right, answer;
};

/// Which judge is asked, and how.
struct JudgeOptions {
  std::string
      url;  ///< of an OpenAI-compatible server: http://host:port/v1, or in full with /chat/completions
  std::string model;          ///< as the server calls it
  std::string key;            ///< sent as bearer token; never written anywhere
  int jobs = 8;               ///< requests at a time
  int tries = 6;              ///< per answer, before giving up
  double timeout_s = 120;     ///< per try
  double first_wait_s = 0.5;  ///< before the second try; doubles from try to try, up to 60 s
};

/// Error for an address or a model that no judge can be asked with.
void check_judge(const JudgeOptions& options);

/// Thrown when a stop was requested.
struct Stopped {};

/// What the judge says about answers, each asked once: its scores are kept in a file of JSON lines, and a
/// question that is there already costs nothing, after a kill too. docs/method.md section 7.
class Judge {
 public:
  /// Reads what `cache` holds; a torn last line is removed. Error for a file that is no cache.
  Judge(JudgeOptions options, const std::filesystem::path& cache);

  /// The score of each question in [0, 1]; nothing for a reply without exactly one, which is not kept: the
  /// next Judge asks again. Asks `jobs` at a time what the cache does not hold. Tries again after a lost
  /// connection, a full or failing server, and what is no completion; after `tries` of the latter there is no
  /// score, of the former an Error, as at once when the server refuses. `step` is called after each reply, by
  /// one thread at a time. Scores before an Error or a stop (which throws Stopped) are kept.
  std::vector<std::optional<double>> scores(const std::vector<JudgeQuestion>& questions,
                                            const std::stop_token& stop, const std::function<void()>& step);

  /// Of `questions`, those the cache does not hold; equal ones count once.
  size_t unknown(const std::vector<JudgeQuestion>& questions) const;

 private:
  struct Reply {
    std::string text;
    std::optional<double> score;
  };
  std::string key(const JudgeQuestion& question) const;
  Reply ask(const JudgeQuestion& question, const std::stop_token& stop) const;
  void keep(const JudgeQuestion& question, const Reply& reply);

  JudgeOptions options_;
  std::string cache_name_;
  std::optional<LineFile> out_;
  std::unordered_map<std::string, std::optional<double>> known_;
  std::mutex mutex_;
};

/// The two messages that ask for a score, as an OpenAI-compatible request's "messages".
nlohmann::json judge_messages(const JudgeQuestion& question);

}  // namespace glimpse
