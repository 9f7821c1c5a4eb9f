"""Networks as ONNX files, which other programs run (onnxruntime, OpenVINO, TensorRT, a browser): no layer knows of it.

A forward pass in evaluation mode is traced (`minires.plan.trace`), and each operator becomes a node. ONNX's images are
(N, C, H, W): one transposition at the input, and weights that are turned once, and then every four-dimensional value is of
that order. The `onnx` package writes the file: pip install 'minires[onnx]'.
"""
from pathlib import Path

import numpy as np

from minires import arguments
from minires.backends import to_numpy
from minires.backends.trace import Array
from minires.errors import UserError
from minires.files import write_atomically
from minires.layer import evaluating
from minires.plan.trace import trace

OPSET, IR = 21, 10  # of ONNX 1.16: the first with GroupNormalization of a weight for each channel
IMAGES, LOGITS = "images", "logits"
N = 7  # images of the pass that is traced: where a shape says 7 first, any number is meant
_UFUNCS = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "negative": "Neg", "exp": "Exp",
           "log": "Log", "sqrt": "Sqrt", "absolute": "Abs", "tanh": "Tanh", "maximum": "Max", "minimum": "Min",
           "power": "Pow", "reciprocal": "Reciprocal"}


def save_onnx(model, path, image_size, in_channels=3, about=None):
    """Write a network as ONNX: images (N, H, W, C) float32, this project's order, to logits (N, K), for any N.

    H = W = image_size; the images are standardised as in training. about: a dict of texts that the file keeps (classes,
    mean, std). UserError for onnx not being installed, a layer that ONNX has no operator for, and a file that cannot be
    written.
    """
    path, size = arguments.path("file", path), arguments.count("image_size", image_size, 2**12)
    onnx = _import_onnx()
    shape = (N, size, size, arguments.count("in_channels", in_channels))
    with evaluating(model):
        program = trace(model, None, [(shape, np.float32)], "cpu")
    graph = _Graph(onnx, model)
    inner = graph.node("Transpose", [IMAGES], perm=[0, 3, 1, 2])
    graph.names[program.inputs[0]] = inner
    for step in program.steps:
        if all(result is None for result in step.results):
            continue
        if step.operator not in _NODES:
            reason = f", {step.reason}" if step.reason else ""
            raise UserError(f"layer {step.layer or 'of the model itself'} is not what ONNX can be told "
                            f"({step.operator}{reason}): make it of the layers in minires.layers, or of NumPy's arithmetic")
        graph.step = step
        graph.names[step.results[0]] = _NODES[step.operator](graph, *step.arguments)
    (y,) = program.outputs
    if y.shape[:1] != (N,) or y.ndim != 2:
        raise UserError(f"the network gives {('N', *y.shape[1:])}, expected logits (N, K)")
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.of(y)], [LOGITS]))
    real, helper = onnx.TensorProto.FLOAT, onnx.helper
    made = helper.make_graph(graph.nodes, "minires", [helper.make_tensor_value_info(IMAGES, real, ["N", *shape[1:]])],
                             [helper.make_tensor_value_info(LOGITS, real, ["N", y.shape[1]])], graph.constants)
    file = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="minires")
    helper.set_model_props(file, {key: str(value) for key, value in (about or {}).items()})
    onnx.checker.check_model(file, full_check=True)
    write_atomically(Path(path), file.SerializeToString())


class _Graph:
    """Nodes and constants as they are made. names: {Array of the trace: the name of its value}."""

    def __init__(self, onnx, model):
        self.onnx, self.nodes, self.constants, self.names, self.step, self._known = onnx, [], [], {}, None, set()
        self._weights = {id(array): name for name, array in model._tensors()}

    def node(self, operator, inputs, **attributes):
        """Add a node with one output; -> the output's name."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def of(self, array):
        """The name of a value of the trace."""
        return self.names[array]

    def constant(self, array, change=lambda array: array, dtype=np.float32):
        """The name of an array of the model's, by its key, or of numbers; change: what is made of it first."""
        changed = np.ascontiguousarray(change(to_numpy(np.asarray(array))), dtype)
        name = self._weights.get(id(array))
        if name is None or name in self._known:
            name = f"c{len(self.constants)}"
        self._known.add(name)
        self.constants.append(self.onnx.numpy_helper.from_array(changed, name))
        return name

    def integers(self, *values):
        """The name of a constant of int64."""
        return self.constant(np.array(values, np.int64), dtype=np.int64)


def _convolution(graph, x, weight, bias, stride, padding, dilation):
    inputs = [graph.of(x), graph.constant(weight, lambda array: array.transpose(3, 2, 0, 1))]
    inputs += [] if bias is None else [graph.constant(bias)]
    return graph.node("Conv", inputs, strides=stride, pads=padding * 2, dilations=dilation)


def _batchnorm(graph, x, mean, var, weight, bias, eps):
    return graph.node("BatchNormalization", [graph.of(x), *(graph.constant(each) for each in (weight, bias, mean, var))],
                      epsilon=eps)


def _layernorm(graph, x, weight, bias, eps):
    name = graph.of(x) if x.ndim != 4 else graph.node("Transpose", [graph.of(x)], perm=[0, 2, 3, 1])
    y = graph.node("LayerNormalization", [name, graph.constant(weight), graph.constant(bias)], axis=-1, epsilon=eps)
    return y if x.ndim != 4 else graph.node("Transpose", [y], perm=[0, 3, 1, 2])


def _groupnorm(graph, x, weight, bias, groups, eps):
    return graph.node("GroupNormalization", [graph.of(x), graph.constant(weight), graph.constant(bias)], num_groups=groups,
                      epsilon=eps)


def _maxpool(graph, x, kernel_size, stride, padding, dilation):
    return graph.node("MaxPool", [graph.of(x)], kernel_shape=kernel_size, strides=stride, pads=padding * 2,
                      dilations=dilation)


def _avgpool(graph, x, kernel_size, stride, padding):
    return graph.node("AveragePool", [graph.of(x)], kernel_shape=kernel_size, strides=stride, pads=padding * 2,
                      count_include_pad=1)


def _pad_shortcut(graph, x, out_channels, stride):
    far, C = np.iinfo(np.int64).max, x.shape[3]
    kept = graph.node("Slice", [graph.of(x), graph.integers(0, 0), graph.integers(far, far), graph.integers(2, 3),
                                graph.integers(*stride)])
    before = (out_channels - C) // 2
    return graph.node("Pad", [kept, graph.integers(0, before, 0, 0, 0, out_channels - C - before, 0, 0)])


def _linear(graph, x, weight, bias):
    if bias is None:
        return graph.node("MatMul", [graph.of(x), graph.constant(weight)])
    return graph.node("Gemm", [graph.of(x), graph.constant(weight), graph.constant(bias)])


def _reshape(graph, x, shape):
    if shape[:1] != (N,) or x.shape[:1] != (N,):
        raise UserError(f"layer {graph.step.layer} mixes the images of a batch ({x.shape} becomes {shape}, of {N} images): "
                        "expected a first axis that stays")
    name = graph.of(x) if x.ndim != 4 else graph.node("Transpose", [graph.of(x)], perm=[0, 2, 3, 1])
    y = graph.node("Reshape", [name, graph.integers(0, *shape[1:])])
    return y if len(shape) != 4 else graph.node("Transpose", [y], perm=[0, 3, 1, 2])


def _arithmetic(graph, ufunc, *inputs):
    rank, names = graph.step.results[0].ndim, []
    if ufunc.__name__ == "square":
        return graph.node("Mul", [graph.of(inputs[0])] * 2)
    for each in inputs:
        if not isinstance(each, Array):
            whole = to_numpy(np.asarray(each))
            whole = whole.reshape((1,) * (rank - whole.ndim) + whole.shape)
            names.append(graph.constant(each, lambda _, whole=whole: whole.transpose(0, 3, 1, 2) if rank == 4 else whole))
        elif each.ndim != rank and 4 in (each.ndim, rank):
            raise UserError(f"layer {graph.step.layer} adds or multiplies values of {each.ndim} and {rank} axes, which ONNX "
                            "orders otherwise: reshape one to (N, 1, 1, C) first")
        else:
            names.append(graph.of(each))
    if ufunc.__name__ not in _UFUNCS:
        raise UserError(f"layer {graph.step.layer} uses numpy.{ufunc.__name__}, which is not told to ONNX: choose among "
                        f"{', '.join(_UFUNCS)}")
    return graph.node(_UFUNCS[ufunc.__name__], names)


_NODES = {
    "conv2d_forward": _convolution, "batchnorm_apply": _batchnorm, "layernorm_forward": _layernorm,
    "groupnorm_forward": _groupnorm, "maxpool2d_forward": _maxpool, "avgpool2d_forward": _avgpool,
    "pad_shortcut_forward": _pad_shortcut, "linear_forward": _linear, "reshape": _reshape, "numpy": _arithmetic,
    "global_avgpool_forward": lambda graph, x: graph.node("Flatten", [graph.node("GlobalAveragePool", [graph.of(x)])]),
    "add": lambda graph, a, b: graph.node("Add", [graph.of(a), graph.of(b)]),
    "relu_forward": lambda graph, x: graph.node("Relu", [graph.of(x)]),
    "leaky_relu_forward": lambda graph, x, slope: graph.node("LeakyRelu", [graph.of(x)], alpha=float(slope)),
    "gelu_forward": lambda graph, x: graph.node("Gelu", [graph.of(x)]),
    "silu_forward": lambda graph, x: graph.node("Mul", [graph.of(x), graph.node("Sigmoid", [graph.of(x)])]),
}


def _import_onnx():
    try:
        import onnx
    except ImportError as error:
        raise UserError("--to onnx needs the onnx package, which is not installed: pip install 'minires[onnx]'") from error
    return onnx
