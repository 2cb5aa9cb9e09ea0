# SPDX-License-Identifier: Apache-2.0

# The device ops compiled by nvcc, with CUDA's runtime linked in: clusterkv_cuda.
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100 CACHE STRING "CUDA architectures")
enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)

file(GLOB device_ops CONFIGURE_DEPENDS kernels/*/cuda/*.cu kernels/*/cuda/*.cpp)
add_library(clusterkv_cuda STATIC ${device_ops})
# CMake 3.25 takes C++20 for nvcc 13's default and names no standard. -fmad=false: as -ffp-contract=off on the host. Where a fused operation is meant, fmaf stands.
target_compile_options(clusterkv_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr -fmad=false -Xcompiler=-Wall,-Wextra
    $<$<BOOL:${CLUSTERKV_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>>)
target_compile_features(clusterkv_cuda PUBLIC cxx_std_20)
set_target_properties(clusterkv_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(clusterkv_cuda PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(clusterkv_cuda PUBLIC fmt::fmt CUDA::cudart_static)
