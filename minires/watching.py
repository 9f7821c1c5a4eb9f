"""Who watches layers: what is set on them is counted, what they compute is told to listeners, or goes to somebody else."""
import functools
from contextlib import contextmanager
from contextvars import ContextVar

_watch = ContextVar("minires_watch", default=(None, True))  # what `calls_go_to` was given
_changes = [0]


def changes():
    """How often anything was set on any layer or parameter, but for what forward keeps."""
    return _changes[0]


def changed():
    """Count a change that was made past the attributes, as through vars(layer)."""
    _changes[0] += 1


def contents(value, around=()):
    """A value that was set on something; of a list, tuple or dict all that it holds, however deep, keys too.

    Of one that holds itself, however deep, nothing a second time.
    """
    if not isinstance(value, list | tuple | dict):
        return [value]
    if any(value is outer for outer in around):
        return []
    return [inside for part in (value.items() if isinstance(value, dict) else value)
            for inside in contents(part, (*around, value))]


class Noticed:
    """Counts what is set on it: see `changes`."""

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        if name != "_kept":
            _changes[0] += 1

    def __delattr__(self, name):
        object.__delattr__(self, name)
        _changes[0] += 1


def heard(method):
    """A layer's `forward` or `backward`, with word of each call for the layer's listeners and for `calls_go_to`."""
    name = method.__name__

    @functools.wraps(method)
    def call(layer, array):
        watch, tell = _watch.get()
        if (watch is None and not layer.listeners) or getattr(type(layer), name) is not call:  # the latter: super().forward
            return method(layer, array)
        result = method(layer, array) if watch is None else watch(method, layer, array)
        for listener in layer.listeners if tell else ():
            replaced = listener(layer, name, array, result)
            result = result if replaced is None else replaced
        return result

    return call


def is_watched():
    """Whether the caller is inside `calls_go_to`."""
    return _watch.get()[0] is not None


@contextmanager
def calls_go_to(watch, tell=True):
    """Inside, each layer's forward and backward is watch(method, layer, array), which calls method(layer, array) itself.

    One inside another comes first, and the method that it is given is the other's watch. With None layers compute themselves
    again. tell: whether listeners are told.
    """
    outer, _ = _watch.get()

    def chained(method, layer, array):
        return watch(functools.wraps(method)(lambda layer, array: outer(method, layer, array)), layer, array)

    token = _watch.set((watch if watch is None or outer is None else chained, tell))
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def listening(layers, listener):
    """Inside, each of the layers has one listener more (see `Layer`); afterwards, however the block ends, it is gone again.

    Those of others stay, whether they came before or inside, and a layer that had none is as if it never had one.
    """
    layers, own = list(dict.fromkeys(layers)), functools.partial(listener)  # a listener that stands there twice goes once
    try:
        for layer in layers:
            layer.listeners = (*layer.listeners, own)
        yield
    finally:
        for layer in layers:
            layer.listeners = tuple(other for other in layer.listeners if other is not own)
            if not layer.listeners:
                del layer.listeners
