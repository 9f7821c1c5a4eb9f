"""minires: a from-scratch, autograd-free ResNet engine that a person can read.

The names that a script needs most, as minires.NAME (loaded when first used: numba, cupy and matplotlib stay out until then):

    Layer              what every layer, block and network is: forward, backward, parameters, state_dict, train, eval
    Parameter          an array that is learned, and its gradient
    Sequential         layers one after another
    inference_mode     `with inference_mode():` forward keeps nothing for backward
    build_model        a network by name, as "resnet20", "resnet" of any design, or yours, "FILE.py:function"
    seed               start anew the random numbers of layers that are made without `rng`
    CrossEntropyLoss   softmax and cross-entropy; loss.forward(y, target) is a number, loss.backward() is dy
    MSELoss            the mean of the squared differences
    SGD                momentum, Nesterov and weight decay, PyTorch's formula
    AdamW              Adam with decoupled weight decay
    Trainer            the training loop, its metrics and its run folder
    check_gradients    prove a layer's backward against numerical differences
    use_backend        `with use_backend("reference"):` compute by the plain NumPy operators
    set_num_threads    how many threads the CPU kernels use
    save               a network's weights and what rebuilds it, into a file
    load               the network of such a file, or of a run's folder
    compile            a training step, or a forward pass, planned: the same numbers, sooner and in less memory
    UserError          every mistake of the caller's, in one sentence

Where the rest lives; help(minires.layers) and so on go on from here:

    minires.layer        the contract of a layer, and a glossary of the signs that the derivations use
    minires.layers       Conv2d, BatchNorm2d, ReLU, MaxPool2d, ... BasicBlock: each docstring derives its backward pass
    minires.losses       the losses
    minires.init         initial weights, and what `rng` may be
    minires.optim        the optimisers
    minires.schedules    learning rates: StepLR, MultiStepLR, CosineLR, OneCycleLR, WarmUp
    minires.models       the networks: MODELS lists their names, with the numbers of each
    minires.data         load_dataset, Dataset, Loader, augmentation, split_train_validation
    minires.training     Trainer, recipes, checkpoints, evaluate, load_model
    minires.evaluation   what `minires eval` and `minires predict` do with a checkpoint
    minires.study        gradient checks, forward mode, Hessians, exercises, planted bugs, the residual X-ray, summaries
    minires.interop      weights from PyTorch and for it: minires.interop.torch
    minires.plots        the pictures, one file per subject
    minires.backends     the operators: reference (NumPy), cpu (Numba), cuda (CuPy); to_device, to_numpy
    minires.plan         how a step is computed: the program that `compile` makes of a model, rewritten, placed and run
    minires.bench        engines side by side, as `minires bench` prints it
    minires.commands     the command line, one file per command; minires.cli gathers them: `minires --help`
    minires.arguments    what arguments are checked with
    minires.files        safetensors in and out
    minires.reprs        how objects print themselves
    minires.machine      the processor, cores and memory of this machine
    minires.watching     listeners of layers, and who takes their calls
    minires.errors       UserError
"""
import importlib
import sys

if sys.platform == "win32":
    sys.exit("minires: error: minires runs on Linux and macOS and not on Windows: install it in WSL, whose Linux it can use")

__version__ = "0.1.0"

_HOMES = {
    "Layer": "layer", "Parameter": "layer", "Sequential": "layer", "inference_mode": "layer",
    "seed": "init", "build_model": "models", "compile": "plan",
    "use_backend": "backends", "set_num_threads": "backends",
    "CrossEntropyLoss": "losses", "MSELoss": "losses", "SGD": "optim", "AdamW": "optim",
    "Trainer": "training", "save": "training", "load": "training", "check_gradients": "study", "UserError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'minires' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minires.{_HOMES[name]}"), name)


def __dir__():
    return __all__
