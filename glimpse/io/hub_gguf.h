#pragma once

#include <optional>
#include <string>
#include <vector>

namespace glimpse {

/// The files of one GGUF model among those of a repository or a folder.
struct GgufChoice {
  std::vector<std::string> parts;  ///< of the language model; several if it is split, in order
  std::string mmproj;              ///< the vision encoder; "" where there is none
};

/// Chooses by `quantisation` as users of llama.cpp name it behind a colon ("Q4_K_M", in any case): the files
/// whose names end with it. "" stands for Q4_K_M, or where there is none for the first. Nothing if there is
/// no language model among `names`; Error listing what there is when none is of the quantisation.
std::optional<GgufChoice> choose_gguf(const std::vector<std::string>& names, const std::string& quantisation);

}  // namespace glimpse
