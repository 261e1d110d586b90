# A CUDA build of libtorch, and CUDA C++ for our own kernels. libtorch's CMake files ask for every CUDA library that
# libtorch itself was linked with; here a compiler (nvcc), its runtime and libtorch's own files are enough, so that a CUDA
# build can be made on a machine with neither a GPU nor a whole toolkit.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit 12.4 REQUIRED)

find_file(_torch_cmake Torch/TorchConfig.cmake HINTS ${Torch_DIR}/.. $ENV{Torch_DIR}/.. ${CMAKE_PREFIX_PATH}
          PATH_SUFFIXES share/cmake REQUIRED NO_CACHE)
get_filename_component(TORCH_INSTALL_PREFIX ${_torch_cmake}/../../../.. ABSOLUTE)
set(TORCH_INCLUDE_DIRS ${TORCH_INSTALL_PREFIX}/include ${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include
                       ${CUDAToolkit_INCLUDE_DIRS})
set(TORCH_LIBRARIES CUDA::cudart)
foreach(library torch torch_cpu torch_cuda c10 c10_cuda)
  find_library(_lib_${library} ${library} PATHS ${TORCH_INSTALL_PREFIX}/lib NO_DEFAULT_PATH)
  if(NOT _lib_${library})
    message(FATAL_ERROR "the cuda preset needs a libtorch built with CUDA; ${TORCH_INSTALL_PREFIX}/lib has no lib${library}.so")
  endif()
  list(APPEND TORCH_LIBRARIES ${_lib_${library}})
endforeach()
# libtorch.so and libtorch_cuda.so register their kernels when loaded; nothing refers to their symbols.
add_link_options(-Wl,--no-as-needed -Wl,--allow-shlib-undefined)
