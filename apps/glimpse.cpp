// The command line program.
#include <iostream>

#include "commands.h"

int main(int argc, char** argv) {
  using namespace glimpse;
  app::Interrupt interrupt;
  interrupt.watch_signals();
  app::Commands commands(interrupt);
  try {
    const int status = commands.run(argc, argv);
    check(std::cout.flush().good(), "standard output cannot be written");
    return status;
  } catch (const CLI::ParseError& error) {
    return commands.exit(error);
  } catch (const Error& error) {
    std::cerr << "glimpse: " << error.what() << "\n";
    return error.kind() == Error::Kind::cancelled ? 130 : 1;
  } catch (const std::exception& error) {
    std::cerr << "glimpse: internal error, please report it: " << error.what() << "\n";
    return 70;
  }
}
