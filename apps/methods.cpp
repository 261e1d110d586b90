#include <iomanip>
#include <iostream>

#include "flags.h"

namespace glimpse::app {

namespace {

struct MethodsFlags {
  EngineOptions engine;
  Fetching fetching;
  bool json = false;
};

int run(MethodsFlags& flags, Interrupt& interrupt) {
  flags.fetching.provide(flags.engine, interrupt);
  const EngineOptions& e = flags.engine;
  // Without a model: the defaults for Qwen2.5-VL's 7B, by which most methods were published.
  PrunerContext context{.layers = 28, .modules = nullptr, .shallow_block = 7};
  if (!e.model.empty() || !e.new_modules.empty()) context = Engine::load(e)->pruner_context();
  const std::vector<PrunerInfo> methods = known_pruners(context);
  if (flags.json) {
    nlohmann::json out = nlohmann::json::array();
    for (const PrunerInfo& method : methods) {
      nlohmann::json settings = nlohmann::json::array();
      for (const auto& setting : method.settings)
        settings.push_back({{"name", setting.name}, {"kind", setting.kind}, {"about", setting.about}});
      out.push_back({{"method", method.name}, {"about", method.summary}, {"settings", settings}});
    }
    std::cout << out.dump(2) << "\n";
    return 0;
  }
  std::cout << "none\n    every visual token stays\n";
  for (const PrunerInfo& method : methods) {
    std::cout << method.name << "\n    " << method.summary << "\n";
    for (const auto& setting : method.settings)
      std::cout << "    " << std::left << std::setw(28) << setting.name + "=" + setting.kind << " "
                << setting.about << "\n";
  }
  std::cout << "\nWith settings and joined, each sees what the one before left: "
               "--prune 'divprune(keep=0.5)+glimpse(threshold=0.3)'\n";
  return 0;
}

}  // namespace

std::function<int()> add_methods(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<MethodsFlags>();
  flags->fetching = add_model_flags(app, flags->engine);
  app.add_flag("--json", flags->json, "print a JSON list")->group("Output");
  app.footer("Defaults are those of --model or, without one, of Qwen2.5-VL's 7B.");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
