#include "glimpse/eval/content_hash.h"

#include <xxhash.h>

#include <iomanip>
#include <sstream>

namespace glimpse {

std::string content_hash(std::string_view bytes) {
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(16) << XXH3_64bits(bytes.data(), bytes.size());
  return out.str();
}

}  // namespace glimpse
