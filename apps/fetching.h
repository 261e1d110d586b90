#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>
#include <vector>

#include "glimpse/engine/engine.h"
#include "glimpse/io/hub.h"

namespace glimpse::app {

class Interrupt;

/// How a command comes by the models that it names and that are not on this machine: what is a hub id and not
/// in the cache is fetched, once, after asking on a terminal, elsewhere if --download or GLIMPSE_DOWNLOAD
/// allows it. Errors of the kind `cancelled` mean that Ctrl-C stopped it.
class Fetching {
 public:
  /// Adds --download and, with `revision`, --revision for the command's model.
  void add(CLI::App& app, bool revision = true, const std::string& group = "Model");
  /// Sees that all of these that are hub ids are there.
  void provide(const std::vector<std::string>& names, Interrupt& interrupt) const;
  /// The same for what an engine loads. Without a model it gets the one that its modules were made for, if
  /// they name one.
  void provide(EngineOptions& options, Interrupt& interrupt) const;
  /// The model's name with --revision. Error when it is no hub id.
  std::string with_revision(const std::string& model) const;

 private:
  struct Given {
    bool download = false;
    std::string revision;
  };
  void provide(const std::vector<std::string>& names, bool base, Interrupt& interrupt) const;
  void fetch(const std::vector<std::string>& names, bool base, Interrupt& interrupt) const;

  std::shared_ptr<Given> given_ = std::make_shared<Given>();
};

/// Fetches a listing's files with a progress line; says so if all are there already.
std::filesystem::path fetch_shown(const Hub& hub, const HubListing& listing,
                                  const std::vector<HubFile>& files, const std::stop_token& stop);
/// Notes of a hub as lines on standard error.
FetchWatch noting();
/// What the models of a folder cannot do without: the base model of modules and adapters (with `base`), and a
/// vision tower apart. Hub ids.
std::vector<std::string> companions_of(const std::filesystem::path& dir, bool base);

}  // namespace glimpse::app
