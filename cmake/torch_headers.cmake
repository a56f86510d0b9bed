# Finds torch's headers without find_package(Torch), which would inject its own architecture flags and link line.
# FindPython reports the real site directory even under pip's build isolation.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
set(hint "${Python_SITEARCH}/torch")
find_path(WARPUP_TORCH_INCLUDE torch/csrc/stable/library.h HINTS ${hint}/include NO_DEFAULT_PATH)
if(NOT WARPUP_TORCH_INCLUDE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
    OUTPUT_VARIABLE hint OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(WARPUP_TORCH_INCLUDE torch/csrc/stable/library.h HINTS ${hint}/include NO_DEFAULT_PATH)
endif()

if(WARPUP_TORCH_INCLUDE)
  cmake_path(GET WARPUP_TORCH_INCLUDE PARENT_PATH hint)  # also where a former run has cached it
endif()

set(WARPUP_TORCH_VERSION "0")
if(hint AND EXISTS ${hint}/version.py)
  file(STRINGS ${hint}/version.py line REGEX "^__version__ *=")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+[^'\"]*" WARPUP_TORCH_VERSION "${line}")
endif()
if(WARPUP_TORCH_VERSION STREQUAL "0")
  message(FATAL_ERROR "warpup builds on torch's headers and ${Python_EXECUTABLE} has no torch. "
                      "Cure: pip install 'torch>=2.10', then install warpup again.")
endif()
if(NOT WARPUP_TORCH_INCLUDE OR WARPUP_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "warpup needs torch 2.10 or newer; ${hint} holds torch ${WARPUP_TORCH_VERSION}. "
                      "Cure: pip install --upgrade 'torch>=2.10', then install warpup again.")
endif()
set(WARPUP_TORCH_LIB ${hint}/lib)
message(STATUS "warpup: torch ${WARPUP_TORCH_VERSION} headers in ${WARPUP_TORCH_INCLUDE}")
