// Numbers of rows as constants; included once per instruction set.
#if defined(GLIMPSE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_ROWS_INL_H_
#undef GLIMPSE_ROWS_INL_H_
#else
#define GLIMPSE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

// Calls f with the number of rows as a constant.
template <class Function>
HWY_INLINE void with_rows(int64_t m, const Function& f) {
  switch (m) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 6:
      return f(std::integral_constant<int, 6>());
    case 7:
      return f(std::integral_constant<int, 7>());
    case 8:
      return f(std::integral_constant<int, 8>());
  }
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
