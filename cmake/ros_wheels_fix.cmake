# For building against the pip wheels of ROS 2: cmake -DCMAKE_PROJECT_INCLUDE=<this file>. Not for an installed ROS 2.
#
# The wheels' exported <package>__rosidl_generator_py targets name the Python and NumPy folders of the machine that
# built them, and CMake refuses targets whose include folders do not exist. They are dropped at the end of configuring;
# nothing is lost, because rosidl_generator_py finds this machine's own.
function(_drop_missing_include_directories)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  list(FILTER targets INCLUDE REGEX "__rosidl_generator_py$")
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    set(existing "")
    foreach(directory IN LISTS directories)
      if(IS_DIRECTORY "${directory}")
        list(APPEND existing "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()
cmake_language(DEFER CALL _drop_missing_include_directories)
