#include "bench/instructions.h"

#include <ATen/Parallel.h>

#include <cstdint>

#include "bench/rows.h"
#include "glimpse/base/timer.h"

// Twelve accumulators hide the latency of every CPU's dot products. The operands are 0x3f80 twice: 1 as bf16,
// about 1 as float32 and small numbers as bytes, so that nothing overflows.
#define CHAINS ".irp i,0,1,2,3,4,5,6,7,8,9,10,11\n"
#define LOOP(name, instruction, kind)                                                                    \
  void name(int64_t rounds) {                                                                            \
    asm volatile(CHAINS                                                                                  \
                 "vpxor %%xmm\\i, %%xmm\\i, %%xmm\\i\n .endr\n"                                          \
                 "vmovd %1, %%xmm12\n"                                                                   \
                 "vpbroadcastd %%xmm12, %%" kind                                                         \
                 "13\n"                                                                                  \
                 "vpbroadcastd %%xmm12, %%" kind                                                         \
                 "12\n"                                                                                  \
                 "1:\n" CHAINS instruction " %%" kind "12, %%" kind "13, %%" kind                        \
                 "\\i\n .endr\n"                                                                         \
                 "dec %0\n jnz 1b\n vzeroupper"                                                          \
                 : "+r"(rounds)                                                                          \
                 : "r"(0x3f803f80)                                                                       \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                   "xmm10", "xmm11", "xmm12", "xmm13");                                                  \
  }

namespace glimpse::bench {

namespace {

constexpr int kChains = 12, kPasses = 5;
constexpr int64_t kRounds = int64_t{1} << 23;

LOOP(fma_512, "vfmadd231ps", "zmm")
LOOP(fma_256, "vfmadd231ps", "ymm")
LOOP(bf16_512, "vdpbf16ps", "zmm")
LOOP(int8_512, "vpdpbusd", "zmm")
LOOP(int8_256, "%{vex%} vpdpbusd", "ymm")

// `per_lane`: operations that an instruction does in 32 bits.
InstructionRate rate(const char* name, int bits, int per_lane, void (*loop)(int64_t)) {
  Samples times;
  const int64_t threads = at::get_num_threads();
  for (int pass = 0; pass < kPasses; ++pass) {
    const Timer timer;
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) loop(kRounds);
    });
    times.add(timer.ms());
  }
  const int64_t operations = threads * kRounds * kChains * (bits / 32) * per_lane;
  return {name, static_cast<double>(operations) / times.best() * 1e3, bits};
}

}  // namespace

std::vector<InstructionRate> instruction_rates() {
  std::vector<InstructionRate> rates;
  if (__builtin_cpu_supports("avx512f"))
    rates.push_back(rate("f32_fma", 512, 2, fma_512));
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    rates.push_back(rate("f32_fma", 256, 2, fma_256));
  if (__builtin_cpu_supports("avx512bf16")) rates.push_back(rate("bf16_dot", 512, 4, bf16_512));
  if (__builtin_cpu_supports("avx512vnni"))
    rates.push_back(rate("int8_dot", 512, 8, int8_512));
  else if (__builtin_cpu_supports("avxvnni"))
    rates.push_back(rate("int8_dot", 256, 8, int8_256));
  return rates;
}

}  // namespace glimpse::bench
