#include "glimpse/prune/registry.h"

#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

PrunerContext with_modules() {
  auto modules = std::make_shared<GlimpseModules>();
  modules->config.selected_layers = {3};
  modules->config.reduce_layer = 3;
  modules->config.rule = {0.4, 0.25, 2, {"tl"}};
  return {6, modules};
}
const PrunerContext kPlain = {6, nullptr};

json settings(const std::string& composition, const PrunerContext& context) {
  const PrunerChain chain = make_pruners(composition, context);
  REQUIRE(chain.size() == 1);
  return chain[0]->settings();
}

std::string error_of(const std::string& composition, const PrunerContext& context) {
  try {
    make_pruners(composition, context);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("compositions") {
  CHECK(make_pruners("none", kPlain).empty());
  CHECK(make_pruners(" none ", with_modules()).empty());
  CHECK(settings("random", kPlain) == json{{"keep", 0.111}, {"seed", 0}, {"layer", 3}});
  CHECK(settings("random()", kPlain)["layer"] == 3);
  CHECK(settings(" random ( keep = 0.5 , layer=-1, seed=9) ", kPlain) ==
        json{{"keep", 0.5}, {"seed", 9}, {"layer", -1}});
  // The config of the modules gives the defaults, the composition overrides them one by one.
  CHECK(settings("glimpse", with_modules()) ==
        json{{"threshold", 0.4}, {"max_keep", 0.25}, {"min_keep", 2}, {"anchors", {"tl"}}});
  CHECK(settings("glimpse(threshold=0,max_keep=none,anchors=br+tr)", with_modules()) ==
        json{{"threshold", 0}, {"max_keep", nullptr}, {"min_keep", 2}, {"anchors", {"br", "tr"}}});
  CHECK(settings("glimpse(min-keep=none)", with_modules())["min_keep"].is_null());
  CHECK(settings("reference", with_modules())["threshold"] == 0.4);
  CHECK(settings("reference(layer=5)", kPlain)["layer"] == 5);

  const PrunerChain chain =
      make_pruners("random(keep=0.5,layer=-1)+glimpse(anchors=tl+br) + reference", with_modules());
  REQUIRE(chain.size() == 3);
  CHECK(chain[0]->name() == "random");
  CHECK(chain[1]->name() == "glimpse");
  CHECK(chain[2]->name() == "reference");
  CHECK(chain[1]->taps().attention_layers == std::vector<int64_t>{3});
  CHECK(chain[1]->taps().guide != nullptr);
  CHECK(chain[1]->cuts()[0].when() == Moment::after(3));
}

TEST_CASE("the default layer: the modules', else two thirds of the way") {
  CHECK(default_cut_layer(with_modules()) == 3);
  CHECK(default_cut_layer({6, nullptr}) == 3);
  CHECK(default_cut_layer({28, nullptr}) == 18);  // published: Qwen2.5-VL-7B
  CHECK(default_cut_layer({36, nullptr}) == 23);  // and 3B
  CHECK(default_cut_layer({1, nullptr}) == 0);
}

TEST_CASE("what is known") {
  std::vector<std::string> names;
  for (const PrunerInfo& info : known_pruners(kPlain)) {
    names.push_back(info.name);
    CHECK_FALSE(info.summary.empty());
    for (const auto& setting : info.settings) CHECK_FALSE(setting.about.empty());
  }
  for (const char* name : {"glimpse", "random", "reference"})
    CHECK(std::find(names.begin(), names.end(), name) != names.end());
}

TEST_CASE("errors of compositions") {
  const auto starts = [](const std::string& composition, const PrunerContext& context,
                         const std::string& expected) {
    const std::string got = error_of(composition, context);
    CAPTURE(composition);
    CHECK_MESSAGE(got.starts_with(expected), got);
  };
  starts("rendom", kPlain,
         "pruning: unknown method 'rendom' (known: none, glimpse, scout, least, random, reference");
  starts("", kPlain, "pruning: unknown method ''");
  starts("random+", kPlain, "pruning: unknown method ''");
  starts("+", kPlain, "pruning: unknown method ''");
  starts("random(kep=0.5)", kPlain,
         "random: unknown setting 'kep'; did you mean 'keep'? (known: keep, seed, layer)");
  starts("random(zzzzzz=1)", kPlain, "random: unknown setting 'zzzzzz' (known: keep, seed, layer)");
  starts("random(keep=1.5)", kPlain, "random: keep: 1.5 is outside [1e-09, 1]");
  starts("random(keep=0)", kPlain, "random: keep: 0 is outside");
  starts("random(keep=)", kPlain, "random: keep: expected a number, got \"\"");
  starts("random(keep=half)", kPlain, "random: keep: expected a number, got \"half\"");
  starts("random(seed=1.5)", kPlain, "random: seed: expected an integer, got 1.5");
  starts("random(layer=-2)", kPlain, "random: layer: -2 is outside [-1, 1e+06]");
  starts("random(keep=0.5", kPlain, "pruning: 'random(keep=0.5' lacks its closing parenthesis");
  starts("random(keep=0.5)x", kPlain, "pruning: 'random(keep=0.5)x' lacks its closing parenthesis");
  starts("random(keep)", kPlain, "pruning: expected name=value in 'random(keep)', got 'keep'");
  starts("random(keep=0.5,)", kPlain, "pruning: expected name=value in 'random(keep=0.5,)', got ''");
  starts("random)", kPlain, "pruning: unknown method 'random)'");
  starts("random(keep=(0.5))", kPlain, "random: keep: expected a number, got \"(0.5)\"");
  starts("random(layer=6)", kPlain, "pruning: 'random(layer=6)' cuts at layer 6 but the model has 6 layers");
  starts("glimpse", kPlain, "glimpse: no pruning modules were given; name their folder with --new-modules");
  starts("glimpse(treshold=0.5)", with_modules(),
         "glimpse: unknown setting 'treshold'; did you mean 'threshold'?");
  starts("glimpse(threshold=1.01)", with_modules(), "glimpse: threshold: 1.01 is outside [0, 1]");
  starts("glimpse(min_keep=-1)", with_modules(), "glimpse: min_keep: -1 is outside");
  starts("glimpse(modules=coarse)", with_modules(),
         "glimpse: no pruning modules are named coarse (known: one without a name)");
  starts("reference(layer=9)", kPlain,
         "pruning: 'reference(layer=9)' cuts at layer 9 but the model has 6 layers");
}
