#include "commands.h"

#include "built_from.h"

namespace glimpse::app {

Commands::Commands(Interrupt& interrupt) {
  program_.set_version_flag("-V,--version", concat("glimpse " GLIMPSE_VERSION " (", kBuiltFrom, ")"));
  program_.require_subcommand(1);
  program_.footer(
      "Examples:\n"
      "  glimpse ask --image photo.jpg \"What number is on the red circle?\"\n"
      "  glimpse ask --model Qwen/Qwen2.5-VL-3B-Instruct --new-modules modules/ --image a.jpg --image b.png "
      "\"Compare.\"\n"
      "  glimpse infer rows.jsonl --image-root images/ --out answers.jsonl\n"
      "`glimpse COMMAND --help` explains a command.");

  const auto command = [&](const char* name, const char* text, auto add) {
    CLI::App* sub = program_.add_subcommand(name, text);
    commands_.emplace_back(sub, add(*sub));
  };
  command("ask", "Ask one question about one or more images",
          [&](CLI::App& sub) { return add_ask(sub, interrupt); });
  command("chat", "Talk about images, turn by turn", [&](CLI::App& sub) { return add_chat(sub, interrupt); });
  command("infer", "Answer many questions from a JSONL file, resumable",
          [&](CLI::App& sub) { return add_infer(sub, interrupt); });
  command("serve", "Answer over HTTP as OpenAI's servers do, with a page that shows what was kept",
          [&](CLI::App& sub) { return add_serve(sub, interrupt); });
  command("train", "Train glimpse token and predictor on a frozen model",
          [&](CLI::App& sub) { return add_train(sub, interrupt); });
  command("tune", "Fine-tune the language model on pruned prompts (GlimpsePrune+)",
          [&](CLI::App& sub) { return add_tune(sub, interrupt); });
  command("eval", "Compare pruning methods on tasks: scores, masks, times, a report",
          [&](CLI::App& sub) { return add_eval(sub, interrupt); });
  command("inspect", "Show what is in a model and its pruning modules",
          [&](CLI::App& sub) { return add_inspect(sub, interrupt); });
  command("methods", "List the pruning methods with their settings",
          [&](CLI::App& sub) { return add_methods(sub, interrupt); });
  command("pull", "Fetch a model from the Hugging Face hub, with its base model, resumable",
          [&](CLI::App& sub) { return add_pull(sub, interrupt); });
  command("models", "List the models in the Hugging Face cache, or remove one",
          [&](CLI::App& sub) { return add_models(sub); });
  command("merge", "Write a checkpoint with PEFT adapters merged into it",
          [&](CLI::App& sub) { return add_merge(sub, interrupt); });
  command("quantize", "Write a checkpoint with weights of 8 or 4 bits",
          [&](CLI::App& sub) { return add_quantize(sub, interrupt); });
}

int Commands::run(int argc, const char* const* argv) {
  program_.parse(argc, argv);
  for (const auto& [sub, run] : commands_)
    if (sub->parsed()) return run();
  return 0;
}

}  // namespace glimpse::app
