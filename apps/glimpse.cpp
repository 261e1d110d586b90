// The command line program: flags and one call per command.
#include <iostream>

#include "built_from.h"
#include "flags.h"

int main(int argc, char** argv) {
  using namespace glimpse;
  app::Interrupt interrupt;
  CLI::App program{"Vision-language models that look only where the question needs: GlimpsePrune in C++.",
                   "glimpse"};
  program.set_version_flag("-V,--version", concat("glimpse " GLIMPSE_VERSION " (", app::kBuiltFrom, ")"));
  program.require_subcommand(1);
  program.footer(
      "Examples:\n"
      "  glimpse ask --image photo.jpg \"What number is on the red circle?\"\n"
      "  glimpse ask --model Qwen/Qwen2.5-VL-3B-Instruct --new-modules modules/ --image a.jpg --image b.png "
      "\"Compare.\"\n"
      "  glimpse infer rows.jsonl --image-root images/ --out answers.jsonl\n"
      "`glimpse COMMAND --help` explains a command.");

  std::vector<std::pair<CLI::App*, std::function<int()>>> commands;
  const auto command = [&](const char* name, const char* text, auto add) {
    CLI::App* sub = program.add_subcommand(name, text);
    commands.emplace_back(sub, add(*sub));
  };
  command("ask", "Ask one question about one or more images",
          [&](CLI::App& sub) { return app::add_ask(sub, interrupt); });
  command("chat", "Talk about images, turn by turn",
          [&](CLI::App& sub) { return app::add_chat(sub, interrupt); });
  command("infer", "Answer many questions from a JSONL file, resumable",
          [&](CLI::App& sub) { return app::add_infer(sub, interrupt); });
  command("serve", "Answer over HTTP as OpenAI's servers do, with a page that shows what was kept",
          [&](CLI::App& sub) { return app::add_serve(sub, interrupt); });
  command("train", "Train glimpse token and predictor on a frozen model",
          [&](CLI::App& sub) { return app::add_train(sub, interrupt); });
  command("eval", "Compare pruning methods on tasks: scores, masks, times, a report",
          [&](CLI::App& sub) { return app::add_eval(sub, interrupt); });
  command("inspect", "Show what is in a model and its pruning modules",
          [&](CLI::App& sub) { return app::add_inspect(sub); });
  command("methods", "List the pruning methods with their settings",
          [&](CLI::App& sub) { return app::add_methods(sub); });
  command("merge", "Write a checkpoint with PEFT adapters merged into it",
          [&](CLI::App& sub) { return app::add_merge(sub, interrupt); });
  command("quantize", "Write a checkpoint with weights of 8 or 4 bits",
          [&](CLI::App& sub) { return app::add_quantize(sub, interrupt); });

  try {
    program.parse(argc, argv);
    for (const auto& [sub, run] : commands)
      if (sub->parsed()) {
        const int status = run();
        check(std::cout.flush().good(), "standard output cannot be written");
        return status;
      }
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  } catch (const Error& error) {
    std::cerr << "glimpse: " << error.what() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "glimpse: internal error, please report it: " << error.what() << "\n";
    return 70;
  }
  return 0;
}
