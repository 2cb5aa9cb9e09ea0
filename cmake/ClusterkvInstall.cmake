# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/clusterkv)
install(TARGETS clusterkv EXPORT clusterkvTargets)
install(DIRECTORY include/clusterkv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT clusterkvTargets NAMESPACE clusterkv:: DESTINATION ${config_dir})
configure_package_config_file(cmake/clusterkvConfig.cmake.in
  ${PROJECT_BINARY_DIR}/clusterkvConfig.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/clusterkvConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/clusterkvConfig.cmake
              ${PROJECT_BINARY_DIR}/clusterkvConfigVersion.cmake
        DESTINATION ${config_dir})
