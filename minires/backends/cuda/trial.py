"""Whether this back end can work here: a device, its driver and CUDA's compiler."""
import cupy
import numpy as np

from minires.backends.cuda.elementwise import relu_forward


def what_is_missing():
    """None, or a sentence with a place for {extra}, what to install."""
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
        why = "it counts 0"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        devices, why = 0, str(error).replace("{", "(").replace("}", ")")
    if devices == 0:
        return f"device cuda needs an NVIDIA GPU and its driver, and CuPy finds none ({why}): use --device cpu"
    try:
        relu_forward(cupy.asarray(np.zeros(1, np.float32)))
    except Exception as error:  # CuPy has no one class for a compiler that is not there or does not know the device
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].replace("{", "(").replace("}", ")")
        return f"device cuda needs CUDA's compiler, and CuPy cannot use it ({why}): {{extra}}"
    return None
