# SPDX-License-Identifier: Apache-2.0

# The CPU ops, compiled once for each instruction set (docs/decisions/005).
set(CLUSTERKV_ISAS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  if(CLUSTERKV_WIDEST STREQUAL avx512)
    list(APPEND CLUSTERKV_ISAS avx2 avx512 avx512vnni amx)
  elseif(CLUSTERKV_WIDEST STREQUAL avx2)
    list(APPEND CLUSTERKV_ISAS avx2)
    add_compile_definitions(CLUSTERKV_WITHOUT_AVX512)
  else()
    add_compile_definitions(CLUSTERKV_WITHOUT_AVX512 CLUSTERKV_WITHOUT_AVX2)
  endif()
endif()
set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512_flags
  ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC 12 finds its own _mm512_undefined_ps() uninitialised (GCC bug 105593).
  list(APPEND avx512_flags -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
set(avx512vnni_flags ${avx512_flags} -mavx512vnni)
set(amx_flags ${avx512vnni_flags} -mamx-tile -mamx-bf16 -mamx-int8)

file(GLOB cpu_ops CONFIGURE_DEPENDS kernels/*/cpu/*.cpp)
list(FILTER cpu_ops EXCLUDE REGEX kernels/common/)
foreach(isa ${CLUSTERKV_ISAS})
  set(ops ${cpu_ops})
  if(isa STREQUAL amx)  # of the stages that multiply matrices
    list(FILTER ops INCLUDE REGEX "kernels/(cluster|select)/")
  endif()
  add_library(clusterkv_cpu_${isa} OBJECT ${ops})
  clusterkv_compile_options(clusterkv_cpu_${isa})
  set_target_properties(clusterkv_cpu_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(clusterkv_cpu_${isa}
    PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_compile_definitions(clusterkv_cpu_${isa} PRIVATE CLUSTERKV_ISA=${isa})
  # Inline functions of the standard library must not stay behind as functions of one instruction set
  # for all: hence -O1 where nothing would be inlined.
  target_compile_options(clusterkv_cpu_${isa} PRIVATE ${${isa}_flags} $<$<CONFIG:Debug>:-O1>)
  target_sources(clusterkv PRIVATE $<TARGET_OBJECTS:clusterkv_cpu_${isa}>)
endforeach()
