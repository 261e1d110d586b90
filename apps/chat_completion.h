#pragma once

#include <string>
#include <vector>

#include "glimpse/prune/registry.h"
#include "line_editor.h"

namespace glimpse::app {

/// What stands behind a command.
enum class ArgumentKind { none, path, methods, budget };

/// Those of `words` that begin as the line does from `from` on.
Completion complete_word(const std::string& line, size_t from, const std::vector<std::string>& words);

/// What the line's argument, which begins at `from`, can go on with: files, of paths typed with or without
/// quotes and backslashes; names of methods, and of their settings within parentheses.
Completion complete_argument(const std::string& line, size_t from, ArgumentKind kind,
                             const std::vector<PrunerInfo>& methods);

}  // namespace glimpse::app
