// On other makers' CPUs Intel's MKL, which multiplies float32 matrices for training, takes its AVX2 kernels
// where AVX-512 is at hand, half as fast. It asks this function whose CPU it is; what it then takes goes by
// what the CPU has.
extern "C" __attribute__((visibility("default"))) int mkl_serv_intel_cpu_true() {
  return 1;
}
