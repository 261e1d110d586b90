# Everything comes from Debian packages and the torch wheel; tools/setup names them all.

# libtorch: an explicit CMAKE_PREFIX_PATH or Torch_DIR (variable or environment) wins, else the torch of the project's own
# .venv (.venv-cuda for a CUDA build, made by tools/setup_cuda).
if(NOT Torch_DIR AND NOT CMAKE_PREFIX_PATH AND "$ENV{Torch_DIR}$ENV{CMAKE_PREFIX_PATH}" STREQUAL "")
  set(_venv .venv)
  if(GLIMPSE_CUDA)
    set(_venv .venv-cuda)
  endif()
  file(GLOB _torch_config ${CMAKE_SOURCE_DIR}/${_venv}/lib/python3*/site-packages/torch/share/cmake)
  list(APPEND CMAKE_PREFIX_PATH ${_torch_config})
endif()
if(GLIMPSE_CUDA)
  include(cmake/cuda.cmake)
else()
  find_package(Torch REQUIRED QUIET)  # its CMake files mention optional parts that are not ours to warn about
endif()
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(libzip REQUIRED IMPORTED_TARGET libzip)
pkg_check_modules(jpeg REQUIRED IMPORTED_TARGET libjpeg)
pkg_check_modules(turbojpeg REQUIRED IMPORTED_TARGET libturbojpeg)
pkg_check_modules(png REQUIRED IMPORTED_TARGET libpng)
pkg_check_modules(webp REQUIRED IMPORTED_TARGET libwebp)
pkg_check_modules(tiff REQUIRED IMPORTED_TARGET libtiff-4)
pkg_check_modules(heif REQUIRED IMPORTED_TARGET libheif)
pkg_check_modules(exif REQUIRED IMPORTED_TARGET libexif)
find_package(GIF REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(yaml REQUIRED IMPORTED_TARGET yaml-cpp)
pkg_check_modules(ssl REQUIRED IMPORTED_TARGET openssl)
pkg_check_modules(curl REQUIRED IMPORTED_TARGET libcurl)
pkg_check_modules(edit REQUIRED IMPORTED_TARGET libedit)
pkg_check_modules(sixel REQUIRED IMPORTED_TARGET libsixel)
if(GLIMPSE_VIDEO)
  set(_video libavformat>=59 libavcodec>=59 libavutil>=57 libswscale>=6)
  pkg_check_modules(ffmpeg IMPORTED_TARGET ${_video})
  if(NOT ffmpeg_FOUND)
    message(FATAL_ERROR "video files need FFmpeg's libraries, version 5.1 or newer: ${_video}. Install libavformat-dev and "
                        "libswscale-dev (Debian; make setup does), or build without video: -DGLIMPSE_VIDEO=OFF")
  endif()
endif()
find_path(GLOO_INCLUDE_DIR gloo/context.h REQUIRED)  # libtorch has Gloo in it, but not its headers
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)
find_path(PROTOZERO_INCLUDE_DIR protozero/pbf_writer.hpp REQUIRED)  # headers only, and no pkg-config file
add_library(protozero INTERFACE)
target_include_directories(protozero SYSTEM INTERFACE ${PROTOZERO_INCLUDE_DIR})

# libtorch as one imported target: system headers (their warnings are not ours) and a single OpenMP runtime.
add_library(glimpse_torch INTERFACE)
target_include_directories(glimpse_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
# The C++ library comes first: some releases of libtorch.so export parts of it (std::filesystem::remove_all) that cannot run.
target_link_libraries(glimpse_torch INTERFACE stdc++ ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)
