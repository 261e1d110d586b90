#pragma once

#include <memory>

#include "glimpse/engine/engine.h"

namespace glimpse::bench {

/// A model and its pruning modules with random bf16 weights, made where they are used: normal numbers, ones
/// in norms. `shape`: {"model": config.json, "new_modules": fields of theirs}, as bench/shapes/*.json have
/// it.
std::unique_ptr<Engine> random_engine(const nlohmann::json& shape, at::Device device);

}  // namespace glimpse::bench
