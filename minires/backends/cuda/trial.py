"""Whether this back end can work here: a device, its driver, CUDA's compiler, and the libraries that CuPy loads late."""
import cupy
import numpy as np

from minires.backends.cuda.elementwise import relu_forward


def what_is_missing():
    """None, or a sentence with a place for {extra}, what to install."""
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
        why = "it counts 0"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        devices, why = 0, _first_line(error)
    if devices == 0:
        return f"device cuda needs an NVIDIA GPU and its driver, and CuPy finds none ({why}): use --device cpu"
    try:
        x = cupy.asarray(np.ones((2, 2), np.float32))
    except Exception as error:  # of the runtime, the driver or the pool: the device is full, or kept by another process
        return (f"device cuda is there, but CuPy cannot put anything on it ({_first_line(error)}): see nvidia-smi for who "
                "uses it, or use --device cpu")
    try:
        y = relu_forward(x)  # NVRTC
        cupy.matmul(y + x, x).get()  # NVRTC with CuPy's headers; cuBLAS; and whatever went wrong on the device
    except Exception as error:  # CuPy has no one class for a library that is not there or does not know the device
        return (f"device cuda needs CUDA's compiler, headers and cuBLAS, and CuPy cannot use them ({_first_line(error)}): "
                "{extra}")
    return None


def _first_line(error):
    """What an error says, without braces, which are places to fill in."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].replace("{", "(").replace("}", ")").rstrip(".")
