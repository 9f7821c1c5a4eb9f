"""What the CUDA runtime says about the one device; tests set `devices` to 0 or to an error."""
NAMES = {35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
         100: "cudaErrorNoDevice: no CUDA-capable device is detected",
         900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
         901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
         101: "cudaErrorInvalidDevice: invalid device ordinal"}


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""

    def __init__(self, status):
        self.status = status
        super().__init__(NAMES.get(status, str(status)))


def getDeviceCount():
    return 1


def getDevice():
    return 0


def getDeviceProperties(number):
    return {"name": b"host stand-in for a CUDA device", "multiProcessorCount": 8, "totalGlobalMem": 1 << 34, "major": 9,
            "minor": 0, "clockRate": 1_000_000, "memoryClockRate": 1_000_000, "memoryBusWidth": 64}


def memGetInfo():
    return 1 << 34, 1 << 34


def driverGetVersion():
    return 12080


def runtimeGetVersion():
    return 12080
