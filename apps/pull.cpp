#include <algorithm>
#include <iostream>

#include "fetching.h"
#include "flags.h"

namespace glimpse::app {

namespace {

struct PullFlags {
  std::string id, revision;
  bool base = true;
};

int run(const PullFlags& flags, Interrupt& interrupt) {
  check(flags.revision.empty() || flags.id.find('@') == std::string::npos, "--revision and ", flags.id,
        " both name a revision; leave one of them out");
  const std::string named = flags.revision.empty() ? flags.id : flags.id + "@" + flags.revision;
  check(HubId::parse(named).has_value(), "'", named,
        "' is no hub id: expected org/name, org/name@revision or org/name:QUANTISATION, such as "
        "Qwen/Qwen2.5-VL-3B-Instruct");
  const Hub hub(HubOptions::from_environment());
  const std::stop_token stop = interrupt.arm();
  std::vector<std::string> names = {named};
  for (size_t i = 0; i < names.size(); ++i) {
    const HubListing listing = hub.list(HubId::parse(names[i]).value(), noting(), stop);
    const auto files = needed_files(listing);
    std::cerr << "glimpse: " << names[i] << " at " << listing.commit.substr(0, 12) << ": " << files.size()
              << " files, " << size_text(total_size(files)) << "\n";
    const std::filesystem::path snapshot = fetch_shown(hub, listing, files, stop);
    std::cout << snapshot.string() << std::endl;
    // A model, what it was made from, a tower apart: a longer chain leads nowhere.
    constexpr size_t most = 4;
    for (const std::string& more : companions_of(snapshot, flags.base))
      if (names.size() < most && std::find(names.begin(), names.end(), more) == names.end())
        names.push_back(more);
  }
  interrupt.disarm();
  return 0;
}

}  // namespace

std::function<int()> add_pull(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<PullFlags>();
  app.add_option(
         "id", flags->id,
         "model on the hub: org/name, org/name@revision, or of GGUF files org/name:QUANTISATION, as in "
         "org/name:Q8_0 (default: Q4_K_M, else the first)")
      ->required()
      ->type_name("ID");
  app.add_option("--revision", flags->revision, "branch, tag or commit (default: main)")->type_name("REV");
  app.add_flag("--base,!--no-base", flags->base,
               "of pruning modules and adapters: whether to fetch the model that they were made for, too "
               "(default: yes)");
  app.footer(
      "Fetches what is needed of a model into the Hugging Face cache, goes on where an earlier try ended, "
      "and "
      "prints its folder.\n"
      "Example:\n"
      "  glimpse pull ashun989/GlimpsePrune_Qwen2.5-VL-3B-Instruct");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
