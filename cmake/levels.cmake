# One folder = one level = one object library that links only lower levels; all of them make libglimpse.

add_library(glimpse_options INTERFACE)
target_include_directories(glimpse_options INTERFACE $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wno-sign-compare)
if(GLIMPSE_WERROR)
  list(APPEND warnings -Werror)
endif()
target_compile_options(glimpse_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${warnings}>")
if(GLIMPSE_SANITIZE)
  # GCC takes instrumented standard headers for uses of uninitialised values and overflows.
  target_compile_options(glimpse_options INTERFACE -fsanitize=${GLIMPSE_SANITIZE} -fno-omit-frame-pointer
                         "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-stringop-overflow>")
  target_link_options(glimpse_options INTERFACE -fsanitize=${GLIMPSE_SANITIZE})
endif()

# ATen costs seconds per file, so every target that uses it reuses this precompiled header.
add_library(glimpse_pch OBJECT ${CMAKE_SOURCE_DIR}/cmake/pch.cpp)
target_link_libraries(glimpse_pch PUBLIC glimpse_options glimpse_torch)
target_precompile_headers(glimpse_pch PRIVATE <ATen/ATen.h> <nlohmann/json.hpp> <string> <vector>)

# glimpse_level(NAME [TORCH] [DEPENDS levels and packages...])
function(glimpse_level name)
  cmake_parse_arguments(arg "TORCH" "" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  add_library(glimpse_${name} OBJECT ${sources})
  target_link_libraries(glimpse_${name} PUBLIC glimpse_options ${arg_DEPENDS})
  if(arg_TORCH)
    target_link_libraries(glimpse_${name} PUBLIC glimpse_torch)
    target_precompile_headers(glimpse_${name} REUSE_FROM glimpse_pch)
  endif()
  set_property(GLOBAL APPEND PROPERTY GLIMPSE_LEVELS glimpse_${name})
endfunction()
