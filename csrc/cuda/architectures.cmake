# For which GPUs the CUDA library is built.
#
# Reads DDSM_CUDA, DDSM_CUDA_ARCHITECTURES and DDSM_CUDA_ALL_ARCHITECTURES (CMakeLists.txt says what
# they mean) and Python_EXECUTABLE. Sets cuda_architectures, or leaves it empty and sets
# cuda_missing to the reason, which `ddsm checks` prints.

# Compute capabilities -> the architectures that serve them: a GPU's own where the list has it, else
# the portable code that a newer GPU's driver translates at first use. What is too old adds none.
function(ddsm_architectures_of capabilities result)
  set(chosen "")
  foreach(capability IN LISTS capabilities)
    string(REPLACE "." "" number "${capability}")
    set(own ${DDSM_CUDA_ALL_ARCHITECTURES})
    list(FILTER own INCLUDE REGEX "^${number}a?-real$")
    if(own)
      list(APPEND chosen ${own})
    elseif(capability VERSION_GREATER_EQUAL 8.0)
      list(APPEND chosen 80-virtual)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES chosen)
  set(${result} "${chosen}" PARENT_SCOPE)
endfunction()

# Capabilities of the GPUs here, and why there are none. The build is for the machine, not for what
# CUDA_VISIBLE_DEVICES shows of it.
function(ddsm_find_gpus capabilities reason)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env --unset=CUDA_VISIBLE_DEVICES
            ${Python_EXECUTABLE} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/gpu_capabilities.py
    OUTPUT_VARIABLE output ERROR_VARIABLE error RESULT_VARIABLE status
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE TIMEOUT 120)
  if(NOT status EQUAL 0)
    set(error "asking the driver ended with ${status}")
  endif()
  string(REPLACE "\n" ";" output "${output}")
  set(${capabilities} "${output}" PARENT_SCOPE)
  set(${reason} "${error}" PARENT_SCOPE)
endfunction()

set(cuda_architectures "")
set(cuda_missing "")
if(NOT DDSM_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DDSM_CUDA is '${DDSM_CUDA}'; need AUTO, ON or OFF")
elseif(DDSM_CUDA STREQUAL "OFF")
  set(cuda_missing "it was built with DDSM_CUDA=OFF")
elseif(NOT DDSM_CUDA_ARCHITECTURES STREQUAL "")
  set(cuda_architectures ${DDSM_CUDA_ARCHITECTURES})
elseif(DDSM_CUDA STREQUAL "ON")
  set(cuda_architectures ${DDSM_CUDA_ALL_ARCHITECTURES})
else()
  ddsm_find_gpus(capabilities reason)
  ddsm_architectures_of("${capabilities}" cuda_architectures)
  if(NOT capabilities)
    set(cuda_missing "no GPU was seen when it was built")
    if(reason)
      string(APPEND cuda_missing ", ${reason}")
    endif()
  elseif(NOT cuda_architectures)
    list(JOIN capabilities ", " capabilities)
    string(CONCAT cuda_missing "the GPU seen when it was built has compute capability "
                               "${capabilities}, the kernels need 8.0")
  endif()
endif()
