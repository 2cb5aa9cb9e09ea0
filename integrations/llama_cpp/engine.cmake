# SPDX-License-Identifier: Apache-2.0

# llama.cpp, as scripts/llama_setup leaves it: its sources, for private headers, and its shared libraries.
set(CLUSTERKV_LLAMA_CPP_SOURCE ${PROJECT_SOURCE_DIR}/build/llama_cpp/source
    CACHE PATH "Sources of llama.cpp")
set(CLUSTERKV_LLAMA_CPP_BUILD ${PROJECT_SOURCE_DIR}/build/llama_cpp/engine
    CACHE PATH "Build folder of llama.cpp, with shared libraries in bin")

set(ggml_lists ${CLUSTERKV_LLAMA_CPP_SOURCE}/ggml/CMakeLists.txt)
if(NOT EXISTS ${ggml_lists})
  message(FATAL_ERROR "no llama.cpp in ${CLUSTERKV_LLAMA_CPP_SOURCE}: run scripts/llama_setup, or set "
                      "CLUSTERKV_LLAMA_CPP_SOURCE and CLUSTERKV_LLAMA_CPP_BUILD")
endif()
set(numbers "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS ${ggml_lists} line REGEX "^set\\(GGML_VERSION_${part} ")
  string(REGEX MATCH "[0-9]+" number "${line}")
  list(APPEND numbers ${number})
endforeach()
list(JOIN numbers "." CLUSTERKV_GGML_VERSION)

function(clusterkv_engine_library name file)
  add_library(${name} SHARED IMPORTED)
  set_target_properties(${name} PROPERTIES
    IMPORTED_LOCATION ${CLUSTERKV_LLAMA_CPP_BUILD}/bin/lib${file}.so)
  target_include_directories(${name} SYSTEM INTERFACE
    ${CLUSTERKV_LLAMA_CPP_SOURCE}/include ${CLUSTERKV_LLAMA_CPP_SOURCE}/ggml/include
    ${CLUSTERKV_LLAMA_CPP_SOURCE}/ggml/src)
endfunction()
clusterkv_engine_library(ggml::base ggml-base)
clusterkv_engine_library(ggml::cpu ggml-cpu)
clusterkv_engine_library(ggml::ggml ggml)
clusterkv_engine_library(llama::llama llama)
target_link_libraries(llama::llama INTERFACE ggml::ggml ggml::base)
