# `cmake --install`: libglimpse, its headers, the programs, the built-in model and the documents. The result can be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# libtorch is used where it was at build time; CMake itself would leave out a path inside the source tree (.venv).
# In the Python package (component `python`, made by pip) it is that of the torch beside it.
set(torch_rpath ${TORCH_INSTALL_PREFIX}/lib "$ORIGIN/../torch/lib")
set_target_properties(glimpse PROPERTIES INSTALL_RPATH "${torch_rpath}" INSTALL_RPATH_USE_LINK_PATH OFF)
install(TARGETS glimpse LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET glimpse_video)  # beside libglimpse, which loads it
  set_target_properties(glimpse_video PROPERTIES INSTALL_RPATH "$ORIGIN;${torch_rpath}" INSTALL_RPATH_USE_LINK_PATH OFF)
  install(TARGETS glimpse_video LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY glimpse/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/glimpse FILES_MATCHING PATTERN "*.h")

if(TARGET glimpse_cli)
  set_target_properties(glimpse_cli PROPERTIES
                        INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};$ORIGIN/..;${torch_rpath};$ORIGIN/../../torch/lib"
                        INSTALL_RPATH_USE_LINK_PATH OFF)
  install(TARGETS glimpse_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES docs/man/glimpse.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES tools/completions/glimpse.bash RENAME glimpse
          DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
endif()
install(DIRECTORY models/tiny/model models/tiny/new_modules DESTINATION ${CMAKE_INSTALL_DATADIR}/glimpse/models/tiny)
install(DIRECTORY eval DESTINATION ${CMAKE_INSTALL_DATADIR}/glimpse)
install(FILES models/tiny/README.md DESTINATION ${CMAKE_INSTALL_DATADIR}/glimpse/models/tiny)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(TARGET glimpse_python)
  set_target_properties(glimpse_python PROPERTIES INSTALL_RPATH "$ORIGIN;${torch_rpath}" INSTALL_RPATH_USE_LINK_PATH OFF)
  set(python COMPONENT python EXCLUDE_FROM_ALL)
  install(TARGETS glimpse_python glimpse LIBRARY DESTINATION glimpse NAMELINK_SKIP ${python})
  if(TARGET glimpse_video)
    install(TARGETS glimpse_video LIBRARY DESTINATION glimpse ${python})
  endif()
  install(TARGETS glimpse_cli RUNTIME DESTINATION glimpse/bin ${python})
  install(DIRECTORY models/tiny/model models/tiny/new_modules DESTINATION glimpse/share/glimpse/models/tiny ${python})
  install(FILES models/tiny/README.md DESTINATION glimpse/share/glimpse/models/tiny ${python})
  install(DIRECTORY eval DESTINATION glimpse/share/glimpse ${python})
endif()

# find_package(glimpse) and pkg-config.
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/glimpse)
get_target_property(soversion glimpse SOVERSION)
file(RELATIVE_PATH pc_to_prefix /${CMAKE_INSTALL_LIBDIR} /)
configure_package_config_file(cmake/glimpseConfig.cmake.in ${CMAKE_BINARY_DIR}/glimpseConfig.cmake
                              INSTALL_DESTINATION ${package_dir}
                              PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/glimpseConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_file(cmake/glimpse.pc.in ${CMAKE_BINARY_DIR}/glimpse.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/glimpseConfig.cmake ${CMAKE_BINARY_DIR}/glimpseConfigVersion.cmake
        DESTINATION ${package_dir})
install(FILES ${CMAKE_BINARY_DIR}/glimpse.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
