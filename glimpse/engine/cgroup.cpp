#include "glimpse/engine/cgroup.h"

namespace glimpse {

void for_each_cgroup(const std::filesystem::path& root, const std::string& controller,
                     const std::function<void(const Cgroup&)>& visit) {
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // ID:CONTROLLERS:PATH; version 2 names none
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && ("," + controllers + ",").find("," + controller + ",") == std::string::npos) continue;
    const std::filesystem::path mount = root / "sys/fs/cgroup" / (unified ? "" : controller);
    // In a container the path may be the host's, while what is mounted begins with the own group.
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      visit({mount / group.relative_path(), unified});
      if (!group.has_relative_path()) break;
    }
  }
}

}  // namespace glimpse
