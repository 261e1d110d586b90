#pragma once

#include <memory>

#include "glimpse/engine/engine.h"

namespace glimpse::bench {

/// A model and its pruning modules with random bf16 weights, made where they are used: normal numbers, ones
/// in norms. `shape`: {"configs": name if there are any, "model": config.json, "new_modules": fields of
/// theirs}, as bench/shapes/*.json have it. It gets the scouts of which `configs` has a NAME_scout.yaml or
/// NAME_encoder_scout.yaml.
std::unique_ptr<Engine> random_engine(const nlohmann::json& shape, const std::filesystem::path& configs,
                                      at::Device device);

}  // namespace glimpse::bench
