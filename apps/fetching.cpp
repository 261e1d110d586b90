#include "fetching.h"

#include <unistd.h>

#include <algorithm>
#include <iomanip>
#include <iostream>

#include "flags.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/io/model_card.h"
#include "glimpse/io/model_dir.h"
#include "rows.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

/// A line about the bytes that came: on a terminal over and over, elsewhere now and then.
class FetchLine {
 public:
  ~FetchLine() { end(); }
  void show(const FetchProgress& now) {
    constexpr double on_terminal_ms = 100, in_log_ms = 10000;
    const double ms = timer_.ms();
    if (first_ == UINT64_MAX) first_ = now.bytes;
    const bool done = now.files == now.all_files;
    if (!(done && terminal_) && ms - shown_ms_ < (terminal_ ? on_terminal_ms : in_log_ms)) return;
    shown_ms_ = ms;
    const double rate =
        static_cast<double>(now.bytes - std::min(first_, now.bytes)) / std::max(ms / 1000, 1e-3);
    std::ostringstream text;
    text << size_text(now.bytes) << "/" << size_text(now.total) << " " << std::fixed << std::setprecision(1)
         << rate / 1e6 << " MB/s, "
         << static_cast<double>(now.total - std::min(now.bytes, now.total)) / std::max(rate, 1e-9)
         << " s left, " << now.files << "/" << now.all_files << " files";
    open_ = terminal_;
    show_progress(terminal_, now.bytes, now.total, text.str(), now.name);
  }
  /// Before other lines.
  void end() {
    if (open_) std::cerr << "\n";
    open_ = false;
  }

 private:
  const Timer timer_;
  const bool terminal_ = isatty(STDERR_FILENO);
  double shown_ms_ = 0;
  uint64_t first_ = UINT64_MAX;
  bool open_ = false;
};

// A directory that a name means now, or nothing.
std::optional<fs::path> local_dir(const std::string& name) {
  std::error_code ignored;
  if (fs::is_directory(name, ignored)) return name;
  const auto id = HubId::parse(name);
  return id && !fs::exists(name, ignored) ? cached_snapshot(*id) : std::nullopt;
}

// Whether it is a hub id of which something has to be fetched.
bool is_missing(const std::string& name) {
  std::error_code ignored;
  if (name.empty() || fs::exists(name, ignored) || !HubId::parse(name)) return false;
  const auto dir = local_dir(name);
  return !dir || !missing_file(*dir, HubId::parse(name)->quantisation).empty();
}

// NAME=DIR names a set of modules.
std::string without_set_name(const std::string& given) {
  const size_t equals = given.find('=');
  std::error_code ignored;
  return equals == given.npos || fs::exists(given, ignored) ? given : given.substr(equals + 1);
}

// A relative path that was mistyped looks like a hub id, too.
HubListing listed(const Hub& hub, const std::string& name, const std::stop_token& stop) {
  try {
    return hub.list(HubId::parse(name).value(), noting(), stop);
  } catch (const Error& error) {
    std::error_code ignored;
    fail_as(error.kind(), error.what(), "\nThere is no file or folder ",
            (fs::current_path(ignored) / name).string(), " either.");
  }
}

void add_name(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

}  // namespace

FetchWatch noting() {
  FetchWatch watch;
  watch.note = [](const std::string& text) { std::cerr << "glimpse: " << text << "\n"; };
  return watch;
}

fs::path fetch_shown(const Hub& hub, const HubListing& listing, const std::vector<HubFile>& files,
                     const std::stop_token& stop) {
  if (missing_files(listing, files).empty())
    std::cerr << "glimpse: " << listing.id.text() << ": all " << files.size() << " files are there already\n";
  FetchLine line;
  FetchWatch watch;
  watch.progress = [&](const FetchProgress& now) { line.show(now); };
  watch.note = [&](const std::string& text) {
    line.end();
    std::cerr << "glimpse: " << text << "\n";
  };
  return hub.fetch(listing, files, watch, stop);
}

std::vector<std::string> companions_of(const fs::path& dir, bool base) {
  std::vector<std::string> names;
  if (base && !has_model_weights(dir))
    if (const std::string model = base_model_of(dir); !model.empty()) names.push_back(model);
  std::error_code ignored;
  if (!fs::is_regular_file(dir / "config.json", ignored)) return names;
  const nlohmann::json config = read_json(dir / "config.json");
  const nlohmann::json& tower = member(config, "mm_vision_tower");
  if (!has_model_weights(dir) || !tower.is_string()) return names;
  const fs::path own = fs::path(tower.get<std::string>()).filename();
  for (const fs::path& place : {dir / own, fs::absolute(dir).parent_path() / own})
    if (!own.empty() && fs::exists(place / "config.json", ignored)) return names;
  if (HubId::parse(tower)) names.push_back(tower);
  return names;
}

void Fetching::add(CLI::App& app, bool revision, const std::string& group) {
  app.add_flag("--download", given_->download,
               "fetch models that are named by hub id and not in the cache without asking (or set "
               "GLIMPSE_DOWNLOAD=1)")
      ->group(group);
  if (revision)
    app.add_option("--revision", given_->revision,
                   "branch, tag or commit of a model that is a hub id; the same as org/name@REV")
        ->type_name("REV")
        ->group(group);
}

std::string Fetching::with_revision(const std::string& model) const {
  if (given_->revision.empty()) return model;
  std::error_code ignored;
  const auto id = HubId::parse(model);
  check(id && !fs::exists(model, ignored), "--revision belongs to a model that is a hub id, not to '", model,
        "'");
  check(model.find('@') == model.npos, "--revision and ", model,
        " both name a revision; leave one of them out");
  const std::string named = model + "@" + given_->revision;
  check(HubId::parse(named).has_value(), "--revision: '", given_->revision,
        "' is no name of a branch, tag or commit");
  return named;
}

void Fetching::provide(const std::vector<std::string>& names, Interrupt& interrupt) const {
  provide(names, false, interrupt);
}

void Fetching::provide(EngineOptions& options, Interrupt& interrupt) const {
  options.model = with_revision(options.model);
  std::vector<std::string> names = {options.model, options.clip}, modules;
  for (const std::string& given : options.new_modules) modules.push_back(without_set_name(given));
  names.insert(names.end(), modules.begin(), modules.end());
  names.insert(names.end(), options.adapters.begin(), options.adapters.end());
  const bool base = options.model.empty() && !modules.empty();
  provide(names, base, interrupt);
  for (const std::string& name : modules)
    if (const auto dir = local_dir(name); base && dir && options.model.empty()) {
      options.model = base_model_of(*dir);
      if (!options.model.empty())
        std::cerr << "glimpse: " << name << " names its base model: " << options.model << "\n";
    }
}

void Fetching::provide(const std::vector<std::string>& names, bool base, Interrupt& interrupt) const {
  // What is fetched may name more: a base model, whose vision tower is apart.
  constexpr int most_rounds = 4;
  for (int round = 0; round < most_rounds; ++round) {
    std::vector<std::string> all, missing;
    for (const std::string& name : names) {
      add_name(all, name);
      if (const auto dir = local_dir(name))
        for (const std::string& more : companions_of(*dir, base)) add_name(all, more);
    }
    for (size_t i = names.size(); i < all.size(); ++i)
      if (const auto dir = local_dir(all[i]))
        for (const std::string& more : companions_of(*dir, false)) add_name(all, more);
    std::copy_if(all.begin(), all.end(), std::back_inserter(missing), is_missing);
    if (missing.empty()) return;
    fetch(missing, base, interrupt);
  }
}

void Fetching::fetch(const std::vector<std::string>& names, bool base, Interrupt& interrupt) const {
  const Hub hub(HubOptions::from_environment());
  const bool allowed = given_->download || environment_flag("GLIMPSE_DOWNLOAD");
  const bool person = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
  if (hub.options().offline || (!allowed && !person)) {
    const char* const how = hub.options().offline
                                ? "\nHF_HUB_OFFLINE is set: nothing is fetched."
                                : "\n--download, or GLIMPSE_DOWNLOAD=1, lets this command fetch it.";
    if (const auto dir = local_dir(names[0]))
      fail("model '", names[0], "' is in the cache only in part: ", dir->string(), " lacks ",
           missing_file(*dir, HubId::parse(names[0])->quantisation), ". `glimpse pull ", names[0],
           "` fetches the rest.", how);
    try {
      resolve_model_dir(names[0]);
    } catch (const Error& error) {
      fail(error.what(), how);
    }
  }
  const std::stop_token stop = interrupt.arm();
  std::vector<HubListing> listings;
  std::vector<std::string> all = names;
  for (size_t i = 0; i < all.size(); ++i) {
    listings.push_back(listed(hub, all[i], stop));
    const auto files = needed_files(listings.back());
    const uint64_t bytes = total_size(missing_files(listings.back(), files));
    std::cerr << "glimpse: " << all[i] << " is not in the cache: " << files.size() << " files of "
              << hub.options().host() << ", " << size_text(bytes) << " to fetch\n";
    const bool apart =
        std::any_of(files.begin(), files.end(), [](const HubFile& file) { return file.name == "README.md"; });
    for (const std::string& more : listings.back().base_models)
      if (base && apart && is_missing(more)) {
        add_name(all, more);
        break;
      }
  }
  if (!allowed) {
    interrupt.disarm();  // Ctrl-C ends the program here
    std::cerr << "glimpse: fetch " << (all.size() == 1 ? "it" : "them") << " to " << hub_cache().string()
              << "? [y/N] " << std::flush;
    std::string answer;
    std::getline(std::cin, answer);
    check(answer == "y" || answer == "Y" || answer == "yes", "nothing was fetched; `glimpse pull ", all[0],
          "` does it, or name a model that is on this machine");
    interrupt.arm();
  }
  for (const HubListing& listing : listings) fetch_shown(hub, listing, needed_files(listing), stop);
  interrupt.disarm();
}

}  // namespace glimpse::app
