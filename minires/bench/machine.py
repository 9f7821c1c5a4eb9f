"""What a measurement must say about where it was taken."""
import datetime
import importlib.metadata
import platform

import minires
from minires.machine import cores, memory_bytes, processor


def describe_device():
    """A dict of the GPU that CuPy computes on: name, compute_capability, memory_bytes, the CUDA version of its driver."""
    import cupy

    runtime = cupy.cuda.runtime
    found, driver = runtime.getDeviceProperties(runtime.getDevice()), runtime.driverGetVersion()
    return {"name": found["name"].decode(), "compute_capability": f"{found['major']}.{found['minor']}",
            "memory_bytes": int(found["totalGlobalMem"]), "driver": f"{driver // 1000}.{driver % 1000 // 10}"}


def _version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_machine(device="cpu"):
    """A dict of processor, cores, vector features, memory, system, versions and date, and for cuda the device."""
    import llvmlite.binding as llvm

    features = sorted(name for name, present in llvm.get_host_cpu_features().items() if present)
    versions = {"minires": minires.__version__, "python": platform.python_version()}
    for package in ("numpy", "numba", "torch"):
        if found := _version_of(package):
            versions[package] = found
    if device == "cuda":
        import cupy

        versions["cupy"] = cupy.__version__
    return {
        "processor": processor(), "architecture": platform.machine(), "llvm_name": llvm.get_host_cpu_name(),
        "cores": cores(),
        "features": [name for name in features if name.startswith(("avx", "fma", "neon", "sve", "amx", "sse4"))],
        "memory_bytes": memory_bytes(), "system": platform.system(), "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **({"device": describe_device()} if device == "cuda" else {}),
    }
