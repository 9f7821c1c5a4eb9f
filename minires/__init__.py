"""minires: a from-scratch, autograd-free ResNet engine that a person can read.

The names below are loaded when they are first used: `import minires` imports neither numba, cupy nor matplotlib.
"""
import importlib

__version__ = "0.1.0"

_HOMES = {
    "Layer": "layer", "Parameter": "layer", "Sequential": "layer", "inference_mode": "layer",
    "seed": "init", "build_model": "models", "fuse": "layers.fused", "capture": "replay",
    "use_backend": "backends", "set_num_threads": "backends",
    "CrossEntropyLoss": "losses", "MSELoss": "losses", "SGD": "optim", "AdamW": "optim",
    "Trainer": "training", "check_gradients": "study", "UserError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'minires' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minires.{_HOMES[name]}"), name)


def __dir__():
    return __all__
