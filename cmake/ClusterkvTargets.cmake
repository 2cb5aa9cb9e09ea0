# SPDX-License-Identifier: Apache-2.0

# The flags of all our own targets. -ffp-contract=off: a fused multiply-add rounds once where the
# rules say twice, and scores must have the same bits in every translation unit.
function(clusterkv_compile_options target)
  target_compile_features(${target} PRIVATE cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE
    -ffp-contract=off -Wall -Wextra -Wpedantic -Wconversion -Wshadow
    -Wno-missing-field-initializers  # designated initialisers leave out what has a default
    $<$<BOOL:${CLUSTERKV_WERROR}>:-Werror>)
  if(CLUSTERKV_SANITIZE)
    target_compile_options(${target} PRIVATE
      -fsanitize=${CLUSTERKV_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${CLUSTERKV_SANITIZE})
  endif()
endfunction()
