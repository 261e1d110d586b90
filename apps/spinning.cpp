// Threads that wait for others spin for a moment before they sleep. By default libgomp spins for
// milliseconds, which beside busy programs keeps a core from the very thread that is waited for: an answer
// then takes several times as long (docs/results.md). It reads how long to spin when it is loaded, from the
// environment only, so the program starts itself again with a shorter time in it, before any library has
// begun. What the user has set stays.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose runtimes have not begun either
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

namespace {

constexpr char kSpins[] = "GOMP_SPINCOUNT=20000";

bool says_how_to_wait(const char* variable) {
  for (const char* name : {"OMP_WAIT_POLICY=", "GOMP_SPINCOUNT="})
    if (std::strncmp(variable, name, std::strlen(name)) == 0) return true;
  return false;
}

// Nothing of the C++ library works yet.
void start_again(int, char** argv, char** environment) {
  constexpr size_t kMost = 4096;
  static std::array<char*, kMost + 2> changed;
  size_t count = 0;
  for (; environment[count]; ++count) {
    if (count == kMost || says_how_to_wait(environment[count])) return;
    changed[count] = environment[count];
  }
  static std::array<char, sizeof kSpins> spins;
  std::memcpy(spins.data(), kSpins, sizeof kSpins);
  changed[count] = spins.data();
  static std::array<char, 4096> self;
  const ssize_t length = readlink("/proc/self/exe", self.data(), self.size() - 1);
  if (length > 0) execve(self.data(), argv, changed.data());  // if that fails, it goes on as it is
}

__attribute__((section(".preinit_array"), used)) void (*const kStart)(int, char**, char**) = start_again;

}  // namespace
#endif
