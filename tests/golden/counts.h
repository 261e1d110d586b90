#pragma once

#include "golden/inputs.h"

#undef CHECK
#include <doctest/doctest.h>

// Which golden data there is. Another set of the same format may have other models, methods and numbers of
// cases (GLIMPSE_GOLDEN_DIR); of the project's own copy all must be there.
namespace glimpse::test {

/// Says how many cases ran. Of the project's own data these must be `own`.
inline void check_count(const std::string& what, int64_t run, int64_t own) {
  if (own_golden_data())
    CHECK_MESSAGE(run == own, run << " " << what << " of " << own);
  else
    MESSAGE((run == 0 ? "no" : std::to_string(run)) << " " << what << " in " << golden_dir().string());
}

/// The cases of every model: FOLDER/cases/*.json.
inline std::vector<GoldenCase> model_cases() {
  return cases_below(golden_dir(), "cases");
}

}  // namespace glimpse::test
