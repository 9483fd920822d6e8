"""Opens the real libraries that the environment names and looks at what they say without a driver.

    SPARSE24_CUSPARSELT=... SPARSE24_CUDART=... python tests/abi/real_library.py 0.8.1

Fails unless the version is the given one and the missing driver becomes the documented error. On a machine
with a driver it stops after the version: ``sparse24 validate-gpu`` is for those.
"""

from __future__ import annotations

import ctypes
import os
import sys

from sparse24 import Error
from sparse24.ops.cuda import cusparselt

NOT_INITIALIZED = 1


def main(version: str) -> None:
    found = cusparselt.library()
    print(f"cuSPARSELt {cusparselt.version_text(found.version)} from {found.path}, {found.cudart_path}")
    assert cusparselt.version_text(found.version) == version, found
    assert found.caveat == "", found.caveat
    driver = cusparselt.driver()
    if driver.driver_version:
        print("there is a driver: run sparse24 validate-gpu")
        return
    assert driver.devices == 0
    assert "35" in driver.problem, driver
    reason = cusparselt.why_unavailable(0)
    assert reason.startswith("no NVIDIA driver is loaded: install one for CUDA "), reason
    said = ""
    try:
        cusparselt.gpu(0)
    except Error as error:
        said = str(error)
    assert said == reason
    # What the library itself answers, and that it leaves the handle alone.
    library = ctypes.CDLL(os.environ["SPARSE24_CUSPARSELT"])
    handle = ctypes.create_string_buffer(b"\xa5" * (16 * 1024))
    assert library.cusparseLtInit(handle) == NOT_INITIALIZED
    assert set(handle.raw[:-1]) == {0xA5}
    print(f"cusparseLtInit: {NOT_INITIALIZED}; {reason}")


if __name__ == "__main__":
    main(sys.argv[1])
