# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs the consumers against an installed library, or with the library in its own build.
set(work ${WORK}/${WAY})
file(REMOVE_RECURSE ${work})
set(arguments -S ${SOURCE}/tests/consumer/project -B ${work}/build -G Ninja
    -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}"
    -DCMAKE_BUILD_TYPE=Release)
if(WAY STREQUAL find_package)
  execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix
                  COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
  list(APPEND arguments -DCMAKE_PREFIX_PATH=${work}/prefix)
else()
  # One instruction set: it is about targets and paths.
  list(APPEND arguments -DCLUSTERKV_SOURCE=${SOURCE} -DCLUSTERKV_WIDEST=portable)
endif()
execute_process(COMMAND ${CMAKE_COMMAND} ${arguments} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${work}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${work}/build/consumer COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${work}/build/consumer_c COMMAND_ERROR_IS_FATAL ANY)
