#include <iomanip>
#include <iostream>

#include "fetching.h"
#include "flags.h"

namespace glimpse::app {

namespace {

struct ModelsFlags {
  std::string remove;
  bool json = false;
};

nlohmann::json to_json(const CachedModel& model) {
  nlohmann::json revisions = nlohmann::json::array();
  for (const CachedRevision& revision : model.revisions)
    revisions.push_back({{"commit", revision.commit},
                         {"refs", revision.refs},
                         {"bytes", revision.bytes},
                         {"path", revision.path.string()},
                         {"missing", revision.missing}});
  return {{"id", model.repo},
          {"bytes", model.bytes},
          {"incomplete_bytes", model.incomplete},
          {"revisions", revisions}};
}

int list(bool json) {
  const std::vector<CachedModel> models = cached_models();
  if (json) {
    nlohmann::json out = nlohmann::json::array();
    for (const CachedModel& model : models) out.push_back(to_json(model));
    std::cout << out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    return 0;
  }
  uint64_t bytes = 0;
  for (const CachedModel& model : models) {
    bytes += model.bytes;
    std::cout << model.repo << "  " << size_text(model.bytes) << "\n";
    for (const CachedRevision& revision : model.revisions) {
      std::string refs;
      for (const std::string& ref : revision.refs) refs += (refs.empty() ? "" : ", ") + ref;
      std::cout << "  " << std::left << std::setw(12) << revision.commit.substr(0, 12) << "  "
                << std::setw(10) << (refs.empty() ? "-" : refs) << "  " << std::right << std::setw(10)
                << size_text(revision.bytes) << "  " << revision.path.string();
      if (!revision.missing.empty()) std::cout << "  (lacks " << revision.missing << ")";
      std::cout << "\n";
    }
    if (model.incomplete > 0)
      std::cout << "  " << size_text(model.incomplete) << " of files that are not whole: `glimpse pull "
                << model.repo << "` goes on\n";
  }
  std::cout << models.size() << (models.size() == 1 ? " model, " : " models, ") << size_text(bytes) << " in "
            << hub_cache().string() << "\n";
  return 0;
}

int remove(const std::string& name) {
  const auto id = HubId::parse(name);
  check(id.has_value(), "'", name, "' is no hub id: expected org/name or org/name@revision");
  const uint64_t bytes = remove_cached(*id, name.find('@') != name.npos);
  std::cerr << "glimpse: removed " << name << ", " << size_text(bytes) << "\n";
  return 0;
}

}  // namespace

std::function<int()> add_models(CLI::App& app) {
  auto flags = std::make_shared<ModelsFlags>();
  app.add_flag("--json", flags->json, "print a JSON list");
  CLI::App* const rm = app.add_subcommand("rm", "Remove a model from the cache, or one revision of it");
  rm->add_option("id", flags->remove, "org/name, or org/name@revision for that one only")
      ->required()
      ->type_name("ID");
  app.footer("Lists the models of the Hugging Face cache, whichever program fetched them.");
  return [flags, rm] { return rm->parsed() ? remove(flags->remove) : list(flags->json); };
}

}  // namespace glimpse::app
