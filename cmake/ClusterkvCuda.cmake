# SPDX-License-Identifier: Apache-2.0

# The CUDA backend: kernels compiled by nvcc, and what calls them. CUDA's runtime is linked in.
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100 CACHE STRING "CUDA architectures")
enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)

# CMake 3.25 takes C++20 for nvcc 13's default and names no standard. -fmad=false: as
# -ffp-contract=off on the host; where a fused operation is meant, fmaf stands.
function(clusterkv_cuda_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr -fmad=false
      -Xcompiler=-Wall,-Wextra
      $<$<BOOL:${CLUSTERKV_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>>)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(${target} PUBLIC fmt::fmt CUDA::cudart_static)
endfunction()

file(GLOB device_ops CONFIGURE_DEPENDS
     kernels/*/cuda/*.cu kernels/*/cuda/*.cpp src/cuda/*.cpp)
add_library(clusterkv_cuda OBJECT ${device_ops})
clusterkv_cuda_options(clusterkv_cuda)
target_sources(clusterkv PRIVATE $<TARGET_OBJECTS:clusterkv_cuda>)
target_link_libraries(clusterkv PRIVATE CUDA::cudart_static)
