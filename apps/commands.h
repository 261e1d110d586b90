#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "flags.h"

namespace glimpse::app {

/// All commands of the program, for one use.
class Commands {
 public:
  explicit Commands(Interrupt& interrupt);
  /// Parses the arguments, of which the first is the program, and runs the command that they name. Returns
  /// its exit status. Throws CLI::ParseError for wrong arguments, and for --help and --version.
  int run(int argc, const char* const* argv);
  /// Prints what such an exception has to say; the exit status.
  int exit(const CLI::ParseError& error) { return program_.exit(error) == 0 ? 0 : 2; }

 private:
  CLI::App program_{"Vision-language models that look only where the question needs: GlimpsePrune in C++.",
                    "glimpse"};
  std::vector<std::pair<CLI::App*, std::function<int()>>> commands_;
};

}  // namespace glimpse::app
