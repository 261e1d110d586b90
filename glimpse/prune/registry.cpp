#include "glimpse/prune/registry.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "glimpse/base/ascii.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/dart.h"
#include "glimpse/prune/divprune.h"
#include "glimpse/prune/least.h"
#include "glimpse/prune/pyramiddrop.h"
#include "glimpse/prune/random.h"
#include "glimpse/prune/reference.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"

namespace glimpse {

namespace {

constexpr const char* kBlanks = " \t";  // around the parts of a composition

using Settings = std::vector<std::pair<std::string, std::string>>;

void set_all(Fields fields, const Settings& settings, const std::string& owner) {
  for (const auto& [name, value] : settings) fields.set(name, value, owner);
}

struct Entry {
  std::string name, summary;
  PrunerFactory make;
  std::function<std::vector<PrunerInfo::Setting>(const PrunerContext&)> settings;  // with their defaults
  PrunerInfo::Budgeted budgeted = PrunerInfo::Budgeted::may;
};

std::vector<PrunerInfo::Setting> described(Fields fields) {
  std::vector<PrunerInfo::Setting> out;
  for (const Field& field : fields.list()) out.push_back({field.name, field.kind, field.about()});
  return out;
}

std::vector<PrunerInfo::Setting> glimpse_settings(const PrunerContext& context) {
  const auto modules = context.modules.find("");
  KeepRule rule = modules ? modules->config.rule : KeepRule();
  return described(rule.fields());
}

// What a method's settings name of the sets, and what they say beside.
template <class T>
std::pair<T, Settings> modules_for(const std::string& method, const PrunerContext& context, Settings settings,
                                   T (ModuleSets::*find)(const std::string&) const) {
  std::string name;
  std::erase_if(settings, [&](const auto& setting) {
    if (setting.first == "modules") name = setting.second;
    return setting.first == "modules";
  });
  const T modules = (context.modules.*find)(name);
  const std::string known = context.modules.names();
  check(modules != nullptr, method,
        known.empty()
            ? ": no pruning modules were given; name their folder with --new-modules (it holds config.json "
              "and new_modules_gp.pt)"
        : name.empty() ? concat(": not among the pruning modules that were given (", known, ")")
                       : concat(": no pruning modules are named ", name, " (known: ", known, ")"));
  return {modules, settings};
}

// Settings of `scout`: its rule, and after which block of the encoder it chooses.
struct ScoutSettings {
  ScoutRule rule;
  int64_t encoder = -1;

  Fields fields() {
    Fields fields = rule.fields();
    fields.add("encoder", encoder,
               "choose after this block of the encoder, by whole windows (-1: before the language model)",
               {-1, 1024});
    return fields;
  }
};

ScoutSettings settings_of(const ModuleSets::Scouts& scout) {
  if (!scout) return {};
  return {scout->config().rule, scout->config().encoder};
}

std::shared_ptr<const Pruner> make_scout(const PrunerContext& context, const Settings& settings) {
  const bool within = std::ranges::any_of(
      settings, [](const auto& setting) { return setting.first == "encoder" && setting.second != "-1"; });
  const auto find = within ? &ModuleSets::find_encoder_scout : &ModuleSets::find_scout;
  const auto [scout, rest] = modules_for(within ? "scout(encoder)" : "scout", context, settings, find);
  ScoutSettings own = settings_of(scout);
  set_all(own.fields(), rest, "scout");
  check(own.encoder == scout->config().encoder, "scout: encoder is ", own.encoder,
        ", but the scout that was given chooses after block ", scout->config().encoder);
  return std::make_shared<ScoutPruner>(scout, own.rule);
}

std::shared_ptr<const Pruner> make_glimpse(const PrunerContext& context, const Settings& settings) {
  const auto [modules, rest] = modules_for("glimpse", context, settings, &ModuleSets::find);
  KeepRule rule = modules->config.rule;
  set_all(rule.fields(), rest, "glimpse");
  return std::make_shared<GlimpsePruner>(modules, rule);
}

std::shared_ptr<const Pruner> make_least(const PrunerContext& context, const Settings& settings) {
  const auto [modules, rest] = modules_for("least", context, settings, &ModuleSets::find);
  set_all(Fields(), rest, "least");
  return std::make_shared<LeastPruner>(modules);
}

// Settings whose defaults depend on the model.
template <class Options>
void adapt(Options&, const PrunerContext&) {}

void adapt(RandomPruner::Options& options, const PrunerContext& context) {
  options.layer = default_cut_layer(context);
}

void adapt(ReferencePruner::Options& options, const PrunerContext& context) {
  if (const auto modules = context.modules.find("")) options.rule = modules->config.rule;
  options.layer = default_cut_layer(context);
}

void adapt(VisionZip::Options& options, const PrunerContext& context) {
  if (context.class_token) options = {54.0 / 576, 0.0174, true};  // 54 and 10 of 576
}

void adapt(CdPruner::Options& options, const PrunerContext& context) {
  options.text_tower = context.text_tower;
  options.relevance = context.text_tower ? "clip" : "words";
}

void adapt(PyramidDrop::Options& options, const PrunerContext& context) {
  const PyramidDrop::Options own = std::exchange(options, {{}, {}});
  // Before layers 8, 16 and 24 of 32. Where cuts of a small model coincide the last of them counts.
  for (size_t i = 0; i < own.keep.size(); ++i) {
    const auto layer = [&](size_t cut) { return static_cast<int64_t>(cut + 1) * context.layers / 4; };
    if (layer(i) == 0 || (i + 1 < own.keep.size() && layer(i + 1) == layer(i))) continue;
    options.layers.push_back(layer(i));
    options.keep.push_back(own.keep[i]);
  }
}

void adapt(VScan::Options& options, const PrunerContext& context) {
  options.shallow = context.shallow_block;
  if (context.class_token) {  // the published evaluation's LLaVA has no cuts inside the language model
    options.window = 6;
    options.whole_shares = options.layer_rope = true;
  } else {
    options.layers = {(2 * context.layers + 2) / 3 - 1};  // 18 of 28
    options.layer_keep = {0.333};
  }
}

// A method made from its defaults for this model and the settings given.
template <class Method>
Entry entry(const char* name, const char* summary,
            PrunerInfo::Budgeted budgeted = PrunerInfo::Budgeted::may) {
  using Options = typename Method::Options;
  return {name, summary,
          [name](const PrunerContext& context, const Settings& settings) -> std::shared_ptr<const Pruner> {
            Options options;
            adapt(options, context);
            set_all(options.fields(), settings, name);
            return std::make_shared<Method>(std::move(options));
          },
          [](const PrunerContext& context) {
            Options options;
            adapt(options, context);
            return described(options.fields());
          },
          budgeted};
}

const std::vector<Entry>& table() {
  static const std::vector<Entry> entries = {
      {"glimpse", "the trained glimpse token and predictor choose, after layer K", make_glimpse,
       glimpse_settings},
      {"scout", "a trained scout chooses before the first layer, from pictures and question", make_scout,
       [](const PrunerContext& context) {
         return described(settings_of(context.modules.find_scout("")).fields());
       }},
      {"least", "the tokens that glimpse thinks least important, for comparison; needs a budget", make_least,
       [](const PrunerContext&) { return std::vector<PrunerInfo::Setting>(); }, PrunerInfo::Budgeted::must},
      entry<RandomPruner>("random", "a random subset, for comparison"),
      entry<ReferencePruner>("reference", "the tokens inside given boxes", PrunerInfo::Budgeted::never),
      entry<DivPrune>("divprune", "as different from each other as possible, before the first layer"),
      entry<Dart>("dart", "those that duplicate a few pivots least, before the first layer"),
      entry<CdPruner>("cdpruner",
                      "different from each other and relevant to the question, before the first layer"),
      entry<VisionZip>("visionzip",
                       "most attended to in the encoder, the rest merged, before the first layer"),
      entry<VScan>("vscan", "local and global attention in the encoder, then that of the last prompt token"),
      entry<PyramidDrop>("pyramiddrop", "most attended to by the last prompt token, layer by layer"),
  };
  return entries;
}

// Those that callers brought, and all.
std::mutex g_mutex;
std::vector<Entry>& own_entries() {
  static std::vector<Entry>& entries = *new std::vector<Entry>;  // what made them may be gone at the end
  return entries;
}

std::vector<Entry> all_entries() {
  std::vector<Entry> entries = table();
  const std::lock_guard lock(g_mutex);
  entries.insert(entries.end(), own_entries().begin(), own_entries().end());
  return entries;
}

// Splits at `separator` outside parentheses.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == separator && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

std::shared_ptr<const Pruner> make_one(const std::string& stage, const PrunerContext& context) {
  const auto open = stage.find('(');
  const std::string name = trimmed(stage.substr(0, open), kBlanks);
  Settings settings;
  if (open != std::string::npos) {
    check(stage.back() == ')', "pruning: '", stage, "' lacks its closing parenthesis");
    const std::string inside = stage.substr(open + 1, stage.size() - open - 2);
    if (!trimmed(inside, kBlanks).empty())
      for (const std::string& setting : split(inside, ',')) {
        const auto equals = setting.find('=');
        check(equals != std::string::npos, "pruning: expected name=value in '", stage, "', got '", setting,
              "'");
        settings.emplace_back(trimmed(setting.substr(0, equals), kBlanks),
                              trimmed(setting.substr(equals + 1), kBlanks));
      }
  }
  std::string known = "none";
  for (const Entry& entry : all_entries()) {
    if (entry.name == name) return entry.make(context, settings);
    known += ", " + entry.name;
  }
  fail("pruning: unknown method '", name, "' (known: ", known, ")");
}

}  // namespace

std::string ModuleSets::names() const {
  std::string list;
  for (const Set& set : sets_)
    list += concat(list.empty() ? "" : ", ", set.name.empty() ? "one without a name" : set.name);
  return list;
}

std::vector<PrunerInfo> known_pruners(const PrunerContext& context) {
  std::vector<PrunerInfo> infos;
  for (const Entry& entry : all_entries())
    infos.push_back({entry.name, entry.summary, entry.settings(context), entry.budgeted});
  return infos;
}

PrunerInfo::Budgeted budgeted(const std::string& method) {
  if (method == "none") return PrunerInfo::Budgeted::never;
  for (const Entry& entry : all_entries())
    if (entry.name == method) return entry.budgeted;
  return PrunerInfo::Budgeted::may;
}

void register_pruner(const std::string& name, const std::string& summary, PrunerFactory make) {
  constexpr const char* letters = "abcdefghijklmnopqrstuvwxyz0123456789_";
  check(!name.empty() && name.find_first_not_of(letters) == name.npos, "pruning: the name '", name,
        "' of a method should consist of lower-case letters, digits and underscores");
  const auto called_so = [&](const Entry& entry) { return entry.name == name; };
  check(name != "none" && name != "auto" && std::ranges::none_of(table(), called_so), "pruning: '", name,
        "' is a method that comes with the library; take another name");
  const auto no_settings = [](const PrunerContext&) { return std::vector<PrunerInfo::Setting>(); };
  const std::lock_guard lock(g_mutex);
  std::erase_if(own_entries(), called_so);
  own_entries().push_back({name, summary, std::move(make), no_settings});
}

int64_t default_cut_layer(const PrunerContext& context) {
  const auto modules = context.modules.find("");
  return modules ? modules->config.reduce_layer : (2 * context.layers + 2) / 3 - 1;
}

PrunerChain make_pruners(const std::string& composition, const PrunerContext& context) {
  PrunerChain chain;
  if (trimmed(composition, kBlanks) == "none") return chain;
  constexpr size_t most = 16;
  const std::vector<std::string> stages = split(composition, '+');
  check(stages.size() <= most, "pruning: a composition of ", stages.size(), " methods; ", most, " at most");
  for (const std::string& stage : stages) {
    chain.push_back(make_one(trimmed(stage, kBlanks), context));
    for (const Cut& cut : chain.back()->cuts())
      check(cut.place == Cut::Place::within || cut.layer < context.layers, "pruning: '", stage,
            "' cuts at layer ", cut.layer, " but the model has ", context.layers, " layers");
  }
  return chain;
}

std::string with_settings(const std::string& method, const std::map<std::string, std::string>& settings,
                          const std::string& spelled_setting, const std::string& spelled_composition) {
  if (settings.empty()) return method;
  std::vector<std::string> owners;
  for (const PrunerInfo& info : known_pruners({})) {
    const auto has = [&](const auto& given) {
      return std::any_of(info.settings.begin(), info.settings.end(),
                         [&](const auto& setting) { return setting.name == given.first; });
    };
    if (!std::all_of(settings.begin(), settings.end(), has)) continue;
    if (info.name == method) {
      std::string given;
      for (const auto& [name, text] : settings) given += (given.empty() ? "" : ",") + name + "=" + text;
      return method + "(" + given + ")";
    }
    owners.push_back(info.name);
  }
  std::string list;
  for (size_t i = 0; i < owners.size(); ++i)
    list += (i == 0 ? "" : i + 1 < owners.size() ? ", " : " and ") + owners[i];
  fail(spelled_setting, " and the like belong to ", list, "; with ", spelled_composition, " '", method,
       "' write them inside it, as in glimpse(threshold=0.3)+random(keep=0.5)");
}

}  // namespace glimpse
