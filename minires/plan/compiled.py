"""`minires.compile`: a model as a function that runs a plan.

    step = minires.compile(model, loss)        # value, logits = step(x, target); gradients are set, not added
    predict = minires.compile(model)           # y = predict(x), in evaluation mode, nothing kept

For each shape of its arguments the first call makes a plan and runs it operator by operator; the next ones run what was
launched, without Python. A change of the model (a mode, an attribute, a parameter's array, a listener) is noticed, and
planned anew.
"""
from operator import is_

import numpy as np

from minires.backends import device_of, ops_for
from minires.layer import evaluating, inference_cache, inference_mode, members, zero_gradients
from minires.plan.memory import Memory, recompute
from minires.plan.program import Program
from minires.plan.report import Plan
from minires.plan.rewrites import EVALUATION, TRAINING, normalise_where_read
from minires.plan.run import Runner
from minires.plan.trace import trace
from minires.watching import changes, contents, is_watched

MOST_SHAPES = 4  # of arguments that are planned; the model runs as it is for others


def compile(model, loss=None, *, input_gradient=False):
    """A planned step of training, TrainingStep, or without a loss a planned forward pass, Prediction.

    input_gradient: whether the step returns dL/dx too (saliency, adversarial examples).
    """
    return Prediction(model) if loss is None else TrainingStep(model, loss, input_gradient)


class _Compiled:
    """Plans by the shapes and dtypes of the arguments."""

    _input_gradient = False

    def __init__(self, model, loss, rewrites):
        self.model, self.loss, self._rewrites, self._plans = model, loss, rewrites, {}

    def _run(self, inputs):
        """What is planned for some inputs, or None: for one shape too many, and where layers' calls go elsewhere."""
        if is_watched():
            return None
        key, found = self._known(inputs)
        if found is None and len(self._plans) == MOST_SHAPES:
            return None
        if found is None or not found.fits(self.model, self.loss):
            self._plans.pop(key, None)  # its memory, before that of the next
            plan = self._planned([(x.shape, x.dtype) for x in inputs], device_of(inputs[0]))
            found = self._plans[key] = _Planned(plan, self.model, self.loss)
        return found

    def _known(self, inputs):
        """A key for some inputs, and what was planned for it."""
        key = (ops_for(inputs[0]).__name__, *((x.shape, x.dtype) for x in inputs))
        return key, self._plans.get(key)

    def _planned(self, inputs, device=None):
        device = device or next((device_of(array) for _, array in self.model._tensors()), "cpu")
        return planned(trace(self.model, self.loss, inputs, device, self._input_gradient), self._rewrites)

    @property
    def opaque(self):
        """[(layer, why)] of what the plans so far do not plan, but call."""
        return list(dict.fromkeys(pair for found in self._plans.values() for pair in found.plan.opaque))

    def __repr__(self):
        return f"{type(self).__name__}({type(self.model).__name__}, {len(self._plans)} plans)"


def planned(program, rewrites):
    """The Plan of a traced program."""
    stages = [("traced", tuple(program.steps))]
    constant = [Program.part_constant] if rewrites is EVALUATION else []
    once_more = [change for change in rewrites if change is normalise_where_read]  # of what is made again for one reader
    for change in (Program.drop_unread, *rewrites, *constant, Program.drop_unread, recompute, *once_more):
        change(program)
        stages.append((change.__name__, tuple(program.steps)))
    return Plan(program, Memory(program), stages)


class _Planned:
    """A plan that was made of a model as it was."""

    def __init__(self, plan, model, loss):
        self.plan, self.run, self.weights, self._seen = plan, Runner(plan.program, plan.memory), None, changes()
        self._model, self._loss = _made_of(model, plan.program.opaque), _set_on(loss, plan.program.opaque)
        self._noticed = not any(any(members(list | dict, vars(layer))) for _, layer in model.named_layers()
                                if layer not in plan.program.opaque)

    @property
    def current(self):
        """Whether nothing has changed since the model was looked at; never sure of lists and dicts, which count nothing."""
        return self._noticed and self._seen == changes()

    def fits(self, model, loss):
        """Whether the model and the loss are still made of the same."""
        if not self.current:
            if not _same(_made_of(model, self.plan.program.opaque), self._model):
                return False
            self._seen = changes()
        return _same(_set_on(loss, self.plan.program.opaque), self._loss)


class TrainingStep(_Compiled):
    """step(x, target) -> (the loss, a float, and the logits; dL/dx with `input_gradient`); sets every parameter's gradient.

    x: (N, H, W, C), target: as the loss takes it. On a GPU the loss is an array of the device, read when it is needed.
    """

    def __init__(self, model, loss, input_gradient=False, rewrites=TRAINING):
        super().__init__(model, loss, rewrites)
        self._input_gradient = input_gradient

    def __call__(self, x, target):
        found = self._run((x, target))
        if found is None:
            y = self.model.forward(x)
            value = self.loss.forward(y, target)
            zero_gradients(self.model.parameters())
            dx = self.model.backward(self.loss.backward())
            return (value, y, dx) if self._input_gradient else (value, y)
        value, *others = found.run((x, target))
        value = float(value) if isinstance(value, np.ndarray | np.generic) else value.copy()
        return value, *(array.copy() for array in others)

    def plan(self, shape, target_shape=None, dtype=np.float32, target_dtype=np.int64):
        """The Plan for x of a shape (N, H, W, C), and targets (N,) of whole numbers unless said otherwise."""
        return self._planned([(tuple(shape), dtype), (target_shape or (shape[0],), target_dtype)])


class Prediction(_Compiled):
    """predict(x) -> y, in evaluation mode, of weights folded once: again when they have changed.

    Whether they have is looked up at every call; inside `inference_mode`, which allows no change, once.
    """

    def __init__(self, model):
        super().__init__(model, None, EVALUATION)

    def __call__(self, x):
        _, found = self._known((x,))
        if found is None or not found.current or is_watched():
            with evaluating(self.model):
                found = self._run((x,))
                if found is None:
                    with inference_mode():
                        return self.model.forward(x)
        self._refold(found)
        (y,) = found.run((x,))
        return y.copy()

    def plan(self, shape, dtype=np.float32):
        """The Plan for x of a shape (N, H, W, C)."""
        with evaluating(self.model):
            return self._planned([(tuple(shape), dtype)])

    def _refold(self, found):
        kept = inference_cache()
        if kept is not None and found in kept:
            return
        weights = [ops_for(array).digest(array) for _, array in self.model._tensors()]
        if found.weights is not None and weights != found.weights:
            found.run.renew()
        found.weights = weights
        if kept is not None:
            kept[found] = weights


def _same(found, known):
    return len(found) == len(known) and all(map(is_, found, known))


def _set_on(thing, opaque, apart=("_kept",)):
    """What is set on a layer or a loss, and in its lists and dicts; nothing of what is opaque, and called as it is."""
    if thing is None or thing in opaque:
        return []
    return contents({name: value for name, value in vars(thing).items() if name not in apart})


def _made_of(model, opaque):
    """What a plan relies on: all that is set on a model's layers but what forward keeps, and the arrays of parameters."""
    values = []
    for _, layer in model.named_layers():
        values += layer, layer.training, *layer.listeners, *_set_on(layer, opaque, ("_kept", "training", "listeners"))
        for _, parameter in layer.own_parameters():
            values += parameter, parameter.data, parameter.grad
    return values
