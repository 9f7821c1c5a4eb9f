"""PyTorch weights in and out. The torch package itself is needed for its own files only (.pt, .pth, .th).

A convolution's weight is (O, C, KH, KW) there and (KH, KW, C, O) here, a linear layer's (K, C) there and (C, K) here, so
either direction reverses what the names say; vectors and running statistics are the same.
"""
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minires import arguments
from minires.errors import UserError
from minires.files import is_safetensors, load_tensors, write_atomically
from minires.layer import Layer
from minires.layers import Flatten
from minires.models import RESNETS

TORCH_SUFFIXES = (".pt", ".pth", ".th")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "network", "model_state",
             "net_state_dict", "state_dict_ema", "ema", "module")  # under which training scripts keep the state_dict
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile, one inside another
_NESTED = 5  # wrappers in one another
_SPELLINGS = {"downsample": "shortcut", "linear": "fc"}  # torchvision's and common CIFAR scripts' names, as ours


def load_torch_weights(model, source):
    """Copy PyTorch's weights into `model`, in its dtype; returns the model.

    source: a file of torch.save's, whatever its name (read by torch, weights only), a .safetensors file (without torch), or
    a dict of arrays or tensors. It may be wrapped ({"state_dict": ...}, {"model": ...}) and its keys may start with
    `module.`, `_orig_mod.`, or any one prefix that all of them share;
    downsample and shortcut, linear and fc mean the same; num_batches_tracked is left out. A .safetensors file of
    `minires train` is recognised and keeps its layouts.

    UserError, and an unchanged model, for a missing or damaged file, for torch not being installed, for a list of every
    missing, unexpected, doubled and misshapen key, and for a model with Flatten before a linear layer, whose
    weight's order depends on the image.
    """
    state, own_layout = _read(source)
    if own_layout:
        return model.load_state_dict(state)
    expected = to_torch_state_dict(model)
    state = _without_prefixes(state, expected)
    aliases = {_canonical(name): name for name in expected}
    found, problems = {}, []
    for key, value in state.items():
        name = str(key)
        if name.endswith("num_batches_tracked"):
            continue
        name = name if name in expected else aliases.get(_canonical(name), name)
        if name in found:
            problems.append(f"{key} is there twice, as {name}")
        found[name] = _as_array(key, value)
    problems += [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [f"{name} has shape {found[name].shape}, expected {array.shape}" for name, array in expected.items()
                 if name in found and found[name].shape != array.shape]
    if problems:
        where = f" in {source}" if isinstance(source, (str, Path)) else ""
        raise UserError(f"the weights{where} do not fit this {type(model).__name__}: " + "; ".join(problems))
    return model.load_state_dict({name: _from_torch(array) for name, array in found.items()})


def read_weights(path):
    """{key: array or tensor} of a file of PyTorch's, or a .safetensors in its layouts, as it is: for `load_torch_weights`.

    UserError for a missing or damaged file, and for torch not being installed.
    """
    return _read(path)[0]


def to_torch_state_dict(model):
    """{name: NumPy array} of parameters and running statistics in PyTorch's layouts, for `module.load_state_dict`
    (after torch.from_numpy) or any other reader. Keys are this project's, which are PyTorch's: layer1.0.conv1.weight.

    UserError for a model with Flatten: its features are channels last, PyTorch's channels first.
    """
    flattening = next((name for name, layer in model.named_layers() if isinstance(layer, Flatten)), None)
    if flattening is not None:
        raise UserError(f"the weights of a model with Flatten ({flattening or 'the model itself'}) have another order in "
                        "PyTorch, which depends on the image: use GlobalAvgPool2d before the linear layer")
    return {name: np.ascontiguousarray(_to_torch(array)) for name, array in model.state_dict().items()}


def save_torch_weights(model, path, torchvision=False):
    """Write the model's weights in PyTorch's layouts: .safetensors (without torch), or .pt, .pth, .th (a plain state_dict).

    torchvision: with its names, `downsample` for `shortcut`, which its resnet18 to resnet152 load.
    The file appears whole or not at all. UserError for another suffix, for torch not being installed, and for a network that
    torchvision does not have.
    """
    path, state = Path(path), to_torch_state_dict(model)
    if torchvision:
        made = model.built_as.keywords if hasattr(model, "built_as") else {}
        theirs = RESNETS.get(made.get("name"), {}).get("block") in ("basic", "bottleneck") and hasattr(model, "maxpool")
        if not theirs or made.get("shortcut") == "A" or made.get("in_channels", 3) != 3:
            raise UserError(f"torchvision has no network such as this {type(model).__name__}: expected resnet18 to 152 "
                            "with the imagenet stem, shortcut B and three channels, write it as torch")
        state = {name.replace(".shortcut.", ".downsample."): array for name, array in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(state, {"format": "pt"})
    elif path.suffix in TORCH_SUFFIXES:
        import io

        torch, buffer = _import_torch(path), io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, buffer)
        content = buffer.getvalue()
    else:
        raise UserError(f"cannot write weights to {path}: choose a name that ends in .safetensors, .pt, .pth or .th")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write weights to {path} ({error.strerror}): choose a folder you may write to") from error


def _to_torch(array):
    """(KH, KW, C, O) -> (O, C, KH, KW); (C, K) -> (K, C)."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_torch(array):
    """(O, C, KH, KW) -> (KH, KW, C, O); (K, C) -> (C, K)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _without_prefixes(state, expected):
    """The state with its keys as the network's own: without what DataParallel, torch.compile or others put before."""
    if not state:
        return state
    state = {str(key): value for key, value in state.items()}
    while prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    first = next(iter(state), "").split(".")[0] + "."
    if all(key.startswith(first) for key in state) and not any(name.startswith(first) for name in expected):
        return _without_prefixes({key.removeprefix(first): value for key, value in state.items()}, expected) if (
            all(len(key) > len(first) for key in state)) else state
    return state


def _canonical(name):
    return ".".join(_SPELLINGS.get(part, part) for part in name.split("."))


def _read(source):
    """(state, whether it is in this project's layouts) from a path or a dict."""
    if isinstance(source, Mapping):
        return _unwrap(source), False
    if isinstance(source, Layer) or not isinstance(source, (str, Path)):
        raise UserError(f"weights come from a path or a dict of arrays, got {type(source).__name__}")
    path = arguments.path("weights", source)
    if not path.is_file():
        raise UserError(f"weights {path} is not a file: expected .safetensors, .pt, .pth or .th")
    if is_safetensors(path):
        tensors, about = load_tensors(path)
        return tensors, {"model", "num_classes"} <= about.keys()  # what `minires train` says of its files
    with path.open("rb") as file:
        start = file.read(4)
    # A zip archive, or a pickle as torch wrote it until 1.6. What else has torch's suffix is damaged.
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80" and path.suffix not in TORCH_SUFFIXES:
        raise UserError(f"weights {path} are neither a safetensors file nor one of torch.save's: expected one of the two")
    torch = _import_torch(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, pickle's among them, and all mean an unusable file
        refused = re.search(r"(?:GLOBAL|global|type) ['`]?([\w.]+\.[\w.]+)", str(error).replace("Unsupported global: ", ""))
        if "eights only" in str(error) and refused:
            raise UserError(f"weights {path} hold more than weights, a {refused[1]}, which is code and is not run: save the "
                            'state_dict alone, as in torch.save(torch.load(path, weights_only=False)["state_dict"], '
                            '"weights.pth"), where you trust the file') from error
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:120]
        raise UserError(f"weights {path} are damaged or hold more than weights ({type(error).__name__}: {reason}): "
                        "expected a state_dict written by torch.save") from error
    if not isinstance(content, Mapping):
        raise UserError(f"weights {path} hold a {type(content).__name__}, expected a state_dict: a dict of tensors")
    return _unwrap(content), False


def _unwrap(content):
    """The state_dict itself, out of what a training script stored it in."""
    for _ in range(_NESTED):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if content and not any(hasattr(value, "shape") for value in content.values()):
        keys = ", ".join(map(str, list(content)[:8]))
        raise UserError(f"no weights were found under the keys {keys}: expected a state_dict, or one under "
                        f"{', '.join(_WRAPPERS[:4])} ..; pass it alone")
    return content


def _numpy_scalars():
    """What torch's reader needs to let NumPy's scalars through, as scripts keep beside the weights (best_acc)."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, np.dtype, *kinds, (scalar, "numpy.core.multiarray.scalar")]


def _as_array(key, value):
    """A NumPy array of an array or a tensor of any device and float type."""
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().double().numpy()
        except Exception as error:  # quantised, sparse, meta: each fails in a way of its own
            raise UserError(f"the weight {key} is a tensor that has no plain numbers ({str(error)[:80]}): save it dense, in "
                            "a float type") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"the weight {key} is a {found}, expected an array of numbers: pass the state_dict alone")
    return value


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a file of PyTorch's own kind and torch is not installed: install minires[torch], "
                        "or convert the file to .safetensors") from error
    return torch
