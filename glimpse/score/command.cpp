#define BOOST_PROCESS_USE_STD_FS  // Boost's own file system is a library that has to be linked

#include "glimpse/score/command.h"

#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <boost/asio.hpp>
// clang-format off
#include <boost/optional.hpp>  // these two are used by those below, which do not include them
#include <boost/type_traits/remove_pointer.hpp>
// clang-format on
#include <boost/process/v2/environment.hpp>
#include <boost/process/v2/process.hpp>
#include <boost/process/v2/stdio.hpp>
#include <boost/tokenizer.hpp>
#include <chrono>
#include <optional>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/pipe_signal.h"

namespace glimpse {

namespace asio = boost::asio;
namespace process = boost::process::v2;
using boost::system::error_code;
using nlohmann::json;

namespace {

constexpr size_t kLongestLine = size_t{1} << 20;
constexpr auto kTimeToEnd = std::chrono::seconds(2);

std::vector<std::string> words_of(const std::string& command) {
  const boost::escaped_list_separator<char> spaces("\\", " \t\r\n", "\"'");
  std::vector<std::string> words;
  try {
    for (const std::string& word : boost::tokenizer(command, spaces))
      if (!word.empty()) words.push_back(word);
  } catch (const boost::escaped_list_error& error) {
    fail("score_command '", command, "': ", error.what(), "; a backslash goes before a quote or a backslash");
  }
  check(!words.empty(), "score_command: expected a program and its arguments, got nothing");
  return words;
}

// A group of its own: Ctrl-C at a terminal is for this program, which then ends the step it is in, and
// what the child starts can be killed with it. It inherits no blocked signals and no open files; Boost 1.81
// closes only some.
struct OwnGroup {
  error_code on_exec_setup(process::posix::default_launcher&, const std::filesystem::path&,
                           const char* const*) {
    ::setpgid(0, 0);
    ::close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    return {};
  }
  // This copy of the program must not run what is to run at its end.
  template <class... What>
  void on_exec_error(What&&...) {
    ::_exit(127);
  }
};

// Nothing for what is no score.
std::optional<double> score_of(const std::string& line) {
  const json parsed = json::parse(line, nullptr, false);
  const json& score = member(parsed, "score");
  if (!score.is_number()) return std::nullopt;
  const auto value = score.get<double>();
  return value >= 0 && value <= 1 ? std::optional(value) : std::nullopt;
}

std::string head(const std::string& line) {
  constexpr size_t shown = 200;
  return json_text(line.size() <= shown ? line : line.substr(0, shown) + " ...");
}

}  // namespace

struct ScoreCommand::Child {
  asio::io_context context;
  asio::writable_pipe in{context};
  asio::readable_pipe out{context};
  std::optional<process::process> program;
  std::string unread;  // what it wrote

  // What nobody has read, without waiting for any.
  bool has_written() {
    pollfd output{out.native_handle(), POLLIN, 0};
    return ::poll(&output, 1, 0) > 0 && (output.revents & POLLIN) != 0;
  }

  // Whether it ended within the time.
  bool ends_within(std::chrono::milliseconds time) {
    bool ended = false;
    program->async_wait([&](error_code, int) { ended = true; });
    context.restart();
    context.run_for(time);
    return ended;
  }

  ~Child() {
    error_code ignored;
    if (program && program->running(ignored)) ::kill(-static_cast<pid_t>(program->id()), SIGKILL);
  }
};

Fields ScoreCommandOptions::fields() {
  Fields fields;
  fields
      .add("score_command", command,
           "program, with its arguments, that the score \"command\" asks: it reads a JSON line for each "
           "answer "
           "and writes {\"score\": x}, x from 0 to 1")
      .add("score_timeout", timeout_s, "seconds to wait for a line of it", {0.001, 86400});
  return fields;
}

ScoreCommand::ScoreCommand(ScoreCommandOptions options)
    : options_(std::move(options)), child_(std::make_unique<Child>()) {
  std::vector<std::string> words = words_of(options_.command);
  const auto program = process::environment::find_executable(words[0]);
  check(!program.empty(), "score_command: there is no program '", words[0],
        "'; name one that can be run, with its path or on PATH");
  words.erase(words.begin());
  try {
    child_->program.emplace(child_->context, program, words,
                            process::process_stdio{child_->in, child_->out, {}}, OwnGroup());
  } catch (const boost::system::system_error& error) {
    fail("score_command: cannot run ", program.string(), ": ", error.code().message());
  }
}

ScoreCommand::~ScoreCommand() {
  if (!child_ || !child_->program) return;
  error_code ignored;
  child_->in.close(ignored);
  child_->out.close(ignored);
  if (child_->program->running(ignored)) child_->ends_within(kTimeToEnd);
}

void ScoreCommand::give_up(const std::string& why, size_t scored, size_t asked) {
  child_.reset();
  fail("score_command '", options_.command, "': ", why, ", after ", scored, " of ", asked, " answers");
}

std::vector<double> ScoreCommand::scores(const std::vector<json>& answers) {
  check(child_ != nullptr, "score_command '", options_.command, "' went wrong before");
  const NoPipeSignal no_signal;
  Child& child = *child_;
  if (!child.unread.empty() || child.has_written())
    give_up("wrote something that it was not asked for", 0, answers.size());
  std::string asked;
  for (const json& answer : answers) asked += json_text(answer) + "\n";

  std::vector<double> scores;
  std::string problem;
  bool written = false;
  asio::steady_timer timer(child.context);
  error_code ignored;
  const auto stop = [&](const std::string& why) {
    if (problem.empty()) problem = why;
    timer.cancel();
    child.in.cancel(ignored);
    child.out.cancel(ignored);
  };
  const auto done = [&] { return written && scores.size() == answers.size(); };
  // Sets the time anew with everything that comes.
  const auto wait = [&] {
    if (done()) return void(timer.cancel());
    timer.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(options_.timeout_s)));
    timer.async_wait([&](error_code code) {
      if (!code) stop(concat("said nothing for ", options_.timeout_s, " seconds (--score-timeout)"));
    });
  };
  std::function<void()> read_line = [&] {
    if (scores.size() == answers.size() || !problem.empty()) return;
    asio::async_read_until(
        child.out, asio::dynamic_buffer(child.unread, kLongestLine), '\n', [&](error_code code, size_t size) {
          if (code == asio::error::not_found) return stop(concat("wrote a line longer than ", kLongestLine));
          if (code) return stop("ended");
          const std::string line = child.unread.substr(0, size - 1);
          child.unread.erase(0, size);
          const auto score = score_of(line);
          if (!score)
            return stop(concat("wrote ", head(line), ", expected {\"score\": x} with x from 0 to 1"));
          scores.push_back(*score);
          wait();
          read_line();
        });
  };
  asio::async_write(child.in, asio::buffer(asked), [&](error_code code, size_t) {
    written = true;
    if (!code) wait();  // else its output ends, too, or the time does
  });
  wait();
  read_line();
  child.context.restart();
  child.context.run();
  if (problem.empty()) return scores;
  // It closed its output; how it ended tells more.
  if (problem == "ended" && child.ends_within(kTimeToEnd))
    problem = concat("ended with status ", child.program->exit_code());
  give_up(problem, scores.size(), answers.size());
}

json answer_line(const json& id, const std::string& question, const std::string& right,
                 const std::string& completion) {
  return {{"id", id}, {"question", question}, {"answer", right}, {"completion", completion}};
}

}  // namespace glimpse
