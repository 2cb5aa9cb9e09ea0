# SPDX-License-Identifier: Apache-2.0

# Builds the .cu files with the host compiler, for the executor of tests/simt.
#   target  an object library to make
#   LANE    plain, or check: every access of a kernel is reported to the executor's checker. The
#           instrumentation is that of -fsanitize=thread, without its runtime.
function(clusterkv_simt_kernels target LANE)
  file(GLOB kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*/cuda/*.cu)
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  # Other lanes than cluster_segment.cu's: suites expect the same bits of both.
  set_source_files_properties(${PROJECT_SOURCE_DIR}/kernels/cluster/cuda/cluster_large.cu
    PROPERTIES COMPILE_DEFINITIONS CLUSTERKV_UPDATE_LANES=32)
  add_library(${target} OBJECT ${kernels})
  clusterkv_compile_options(${target})
  target_include_directories(${target} PRIVATE
    ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/tests/simt/include)
  target_compile_definitions(${target} PRIVATE CLUSTERKV_SIMT)
  # Reads of 16 bytes through other types are defined in CUDA; pragmas are nvcc's. Loops must stay
  # loops: calls of memset would pass the checker by.
  target_compile_options(${target} PRIVATE
    -x c++ -O1 -g -fno-strict-aliasing -fno-tree-loop-distribute-patterns -Wno-unknown-pragmas
    $<$<STREQUAL:${LANE},check>:-fsanitize=thread>)
endfunction()

# What calls them, on the stand-in for CUDA's runtime: takes the place of the library's no_cuda.cpp.
function(clusterkv_simt_backend target)
  file(GLOB backend CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cpp)
  add_library(${target} OBJECT ${backend})
  clusterkv_compile_options(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_compile_definitions(${target} PRIVATE CLUSTERKV_SIMT)
  target_link_libraries(${target} PRIVATE fmt::fmt)
endfunction()
