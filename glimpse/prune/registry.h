#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/prune/glimpse.h"
#include "glimpse/prune/pruner.h"
#include "glimpse/prune/scout.h"

namespace glimpse {

/// Pruning methods that run one after the other; each sees the survivors of those before it.
using PrunerChain = std::vector<std::shared_ptr<const Pruner>>;

/// Sets of pruning modules by name, each with glimpse modules, a scout, one within the encoder or more of
/// them; the one named "" is what methods take that name none.
class ModuleSets {
 public:
  using Modules = std::shared_ptr<const GlimpseModules>;
  using Scouts = std::shared_ptr<const Scout>;
  ModuleSets() = default;
  ModuleSets(std::nullptr_t) {}
  template <class T>
  ModuleSets(std::shared_ptr<T> unnamed) {
    add("", std::move(unnamed));
  }
  void add(std::string name, Modules modules, Scouts scout = nullptr, Scouts encoder_scout = nullptr) {
    if (modules || scout || encoder_scout)
      sets_.push_back({std::move(name), std::move(modules), std::move(scout), std::move(encoder_scout)});
  }
  /// Null if there is none of this name; a single one also goes without its own.
  Modules find(const std::string& name) const { return part(name, &Set::modules); }
  Scouts find_scout(const std::string& name) const { return part(name, &Set::scout); }
  Scouts find_encoder_scout(const std::string& name) const { return part(name, &Set::encoder_scout); }
  /// The names, for messages.
  std::string names() const;

 private:
  struct Set {
    std::string name;
    Modules modules;
    Scouts scout, encoder_scout;
  };
  template <class T>
  T part(const std::string& name, T Set::*kind) const {
    T only;
    int count = 0;
    for (const Set& set : sets_) {
      if (!(set.*kind)) continue;
      if (set.name == name) return set.*kind;
      only = set.*kind;
      ++count;
    }
    return name.empty() && count == 1 ? only : nullptr;
  }

  std::vector<Set> sets_;
};

/// What a composition is made for.
struct PrunerContext {
  int64_t layers = 0;  ///< of the language model
  ModuleSets modules;
  int64_t shallow_block = 0;  ///< of the encoder: shows local detail
  bool class_token = false;   ///< the encoder has one
  bool text_tower = false;    ///< the encoder shares a space with a text encoder
};

/// A method as help and errors show it; its defaults are those for one model.
struct PrunerInfo {
  struct Setting {
    std::string name, kind, about;  ///< see Field
  };
  std::string name, summary;
  std::vector<Setting> settings;
  /// Whether what stays can be given as a budget, must be, or is never: given boxes say it.
  enum class Budgeted { may, must, never } budgeted = Budgeted::may;
};
std::vector<PrunerInfo> known_pruners(const PrunerContext& context);
/// Of the method called so; "none" is never budgeted, and what is not known may be.
PrunerInfo::Budgeted budgeted(const std::string& method);

/// Builds a composition such as "glimpse(threshold=0.5,max_keep=0.111)" or
/// "divprune(keep=0.5)+glimpse"; "none" is no pruning. Unknown methods and settings are errors that
/// list the known ones.
PrunerChain make_pruners(const std::string& composition, const PrunerContext& context);

/// A method's name with settings of its own, which may come apart from it: "glimpse", {threshold: 0.3} ->
/// "glimpse(threshold=0.3)". Error when it does not have them all, which names those that do; `spelled` says
/// how the caller writes a setting and a composition.
std::string with_settings(const std::string& method, const std::map<std::string, std::string>& settings,
                          const std::string& spelled_setting, const std::string& spelled_composition);

/// Makes a method for a model, with the settings that a composition gives it (name and value).
using PrunerFactory = std::function<std::shared_ptr<const Pruner>(
    const PrunerContext& context, const std::vector<std::pair<std::string, std::string>>& settings)>;
/// Makes a method of the caller's own known under a name, wherever a composition or a list of methods is
/// read; an earlier one of that name is replaced. May be called from any thread. Error for a name that is no
/// word or that one of the methods here has.
void register_pruner(const std::string& name, const std::string& summary, PrunerFactory make);

/// The layer after which a method cuts unless told otherwise: that of the modules, else two thirds of the
/// way, as in every published configuration.
int64_t default_cut_layer(const PrunerContext& context);

}  // namespace glimpse
