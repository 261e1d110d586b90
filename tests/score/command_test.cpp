// A user's own program that scores answers, in bash and Python: what it is asked, and every way to be wrong.
#include "glimpse/score/command.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"

#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

std::vector<json> answers(std::initializer_list<const char*> completions) {
  std::vector<json> out;
  for (const char* text : completions) out.push_back(answer_line(std::ssize(out), "What?", "yes", text));
  return out;
}

// The scores, or why there are none.
std::string asked(const std::string& command, const std::vector<json>& lines, double timeout_s = 20) {
  try {
    ScoreCommand program({command, timeout_s});
    std::string out;
    for (const double score : program.scores(lines)) out += concat(score, " ");
    return out;
  } catch (const Error& error) {
    return error.what();
  }
}

void check_has(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != text.npos);
}

// A command line that runs a script of bash or Python, which goes with this.
class Script {
 public:
  explicit Script(const std::string& text, const std::string& runs = "bash")
      : file_(std::filesystem::temp_directory_path() / concat("glimpse score ", getpid(), "-", ++made_)),
        command(concat(runs, " '", file_.string(), "'")) {
    std::ofstream(file_) << text;
  }
  ~Script() { std::filesystem::remove(file_); }
  Script(const Script&) = delete;

 private:
  static inline int made_ = 0;
  const std::filesystem::path file_;

 public:
  const std::string command;
};

const char* const kRight = R"(import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"score": float(row["completion"] == row["answer"])}), flush=True))";

}  // namespace

TEST_CASE("a program started once scores answers in order") {
  const Script right(kRight, "python3"),
      counts(R"(while read -r line; do n=$((n + 1)); echo "{\"score\": 0.$n}"; done)");
  ScoreCommand program({right.command, 20});
  CHECK(program.scores(answers({"yes", "no", "yes"})) == std::vector<double>{1, 0, 1});
  CHECK(program.scores({}).empty());
  CHECK(program.scores(answers({"\xff no UTF-8", "yes"})) == std::vector<double>{0, 1});
  // What counts stays where it is between calls.
  ScoreCommand counting({counts.command, 20});
  CHECK(counting.scores(answers({"a", "b"})) == std::vector<double>{0.1, 0.2});
  CHECK(counting.scores(answers({"a"})) == std::vector<double>{0.3});
}

TEST_CASE("words are held together by quotes, and no shell reads them") {
  const Script echoes(
      R"(read -r line; printf '%s|' "$@" >&2; [ "$*" = 'a b $HOME * "c\' ] && echo '{"score": 1}'; read -r line)");
  CHECK(asked(echoes.command + R"( 'a b' "$HOME" * \"c\\)", answers({"a"})) == "1 ");
}

TEST_CASE("more is asked and said than a pipe holds") {
  const std::vector<json> lines(50, answer_line("id", "What?", "yes", std::string(200000, 'x')));
  const Script wordy(
      "import sys\nfor line in sys.stdin:\n    print('{\"score\": 0.5, \"why\": \"' + 'y' * 100000 + '\"}')",
      "python3");
  CHECK(asked(wordy.command, lines).starts_with("0.5 0.5 "));
}

TEST_CASE("a program that does not score is an error that says what it did") {
  const std::vector<json> two = answers({"yes", "no"});
  const auto says = [&](const std::string& text, const std::string& part) {
    const Script script(text);
    check_has(asked(script.command, two, 3), part);
  };
  check_has(asked("", two), "expected a program");
  check_has(asked("no-such-program --flag", two), "there is no program 'no-such-program'");
  check_has(asked(std::filesystem::temp_directory_path().string(), two), "score_command: ");
  check_has(asked("bash \\x", two), "a backslash goes before");
  check_has(asked("true", two), "ended with status 0");
  says("read a; yes", "wrote \"y\", expected {\"score\": x}");
  says("exit 3", "ended with status 3, after 0 of 2 answers");
  says(R"(read a; echo '{"score": 1}'; kill -9 $$)", "after 1 of 2");
  says(R"(exec 1>&-; sleep 9)", "ended, after 0 of 2");
  says("cat > /dev/null", "--score-timeout");
  for (const char* line : {"{}", "1", R"({"score": 1.01})", R"({"score": -1})", R"({"score": "1"})", "[", "",
                           R"({"score": null})", R"({"score": 1e999})", R"([{"score": 1}])"})
    says(concat("read a; echo '", line, "'; sleep 9"), "expected {\"score\": x} with x from 0 to 1");
  says("read a; head -c 3000000 /dev/zero; sleep 9", "longer than");
}

TEST_CASE("time without a line ends it, and what it started") {
  const auto file = std::filesystem::temp_directory_path() / concat("glimpse-pid-", getpid());
  const Script slow(concat("sleep 100 & echo $! > ", file.string(), "; sleep 100"));
  const Timer timer;
  check_has(asked(slow.command, answers({"yes"}), 0.5), "said nothing for 0.5 seconds");
  CHECK(timer.ms() < 10000);
  pid_t child = 0;
  std::ifstream(file) >> child;
  REQUIRE(child > 0);
  // It is gone, or dead and waits for somebody to notice.
  bool alive = true;
  for (int i = 0; i < 100 && alive; ++i) {
    std::ifstream stat(concat("/proc/", child, "/stat"));
    std::string id, name, state;
    alive = static_cast<bool>(stat >> id >> name >> state) && state != "Z";
    if (alive) usleep(20000);
  }
  CHECK(!alive);
  std::filesystem::remove(file);
}

TEST_CASE("more lines than answers are noticed, and nothing is asked after an error") {
  const Script twice(R"(while read -r a; do printf '{"score": 1}\n{"score": 0}\n'; done)");
  ScoreCommand program({twice.command, 5});
  std::string said;
  for (int i = 0; i < 100 && said.empty(); ++i) try {
      program.scores(answers({"yes"}));
      usleep(10000);
    } catch (const Error& error) {
      said = error.what();
    }
  check_has(said, "that it was not asked for");
  CHECK_THROWS_AS(program.scores(answers({"yes"})), Error);
}

TEST_CASE("the program ends with its input, without being killed") {
  const auto file = std::filesystem::temp_directory_path() / concat("glimpse-end-", getpid());
  const Script script(
      concat(R"(while read -r a; do echo '{"score": 1}'; done; echo done > )", file.string()));
  {
    ScoreCommand program({script.command, 20});
    program.scores(answers({"yes"}));
  }
  std::string word;
  std::ifstream(file) >> word;
  CHECK(word == "done");
  std::filesystem::remove(file);
}
