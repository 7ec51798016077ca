"""Prints the compute capability of every NVIDIA GPU that the driver sees, one a line ("9.0").

Needs no toolkit. Where there is none it prints nothing, and the reason to stderr.
"""

from __future__ import annotations

import ctypes
import sys

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_DEVICE = 100


def capabilities() -> list[str]:
    """Ask the driver.

    Raises:
        OSError: there is no driver, or it reports an error.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise OSError("the driver's libcuda.so.1 does not load") from error

    def check(status: int) -> None:
        if status:
            raise OSError(f"the driver reports error {status}")

    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return []
    check(status)
    count = ctypes.c_int()
    check(driver.cuDeviceGetCount(ctypes.byref(count)))
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        check(driver.cuDeviceGet(ctypes.byref(device), index))
        for attribute, value in ((_MAJOR, major), (_MINOR, minor)):
            check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        found.append(f"{major.value}.{minor.value}")
    return found


if __name__ == "__main__":
    try:
        print("\n".join(capabilities()))
    except OSError as error:
        print(error, file=sys.stderr)
