#pragma once

#include <pybind11/pybind11.h>

#include "glimpse/prune/registry.h"

namespace glimpse {

/// Stages of a composition: text, or objects with `cuts`, `taps`, `select` (glimpse.Pruner). Errors: those of
/// make_pruners(), and whatever an object's own code raises.
PrunerChain pruners_of(const pybind11::list& stages, const PrunerContext& context);

/// Adds what the module has about pruning: register, methods, select (glimpse.prune).
void add_pruning(pybind11::module_& module);

/// Which of the given tensors a method keeps; what it needs and is not given is a TypeError. See
/// glimpse.prune.
pybind11::object select_tokens(const std::string& method, const pybind11::dict& given,
                               const PrunerContext& context);

}  // namespace glimpse
