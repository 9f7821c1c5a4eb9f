"""The stand-in's array: as strict as CuPy's about NumPy arrays and implicit copies, and it counts synchronisations."""
import operator

import numpy as np

from cupy._memory import POISON, MemoryPointer, allocators

KINDS = "biuf"


class Counters:
    """synchronisations: how often the host has waited for a result; launches: of kernels of our own; graphs: launches of
    graphs."""

    synchronisations = launches = graphs = 0


counters = Counters()


class Capture:
    """Streams that are current, the last one is used. One that notes has functions in `calls`, others None there."""

    def __init__(self):
        self.streams = []

    @property
    def calls(self):
        return self.streams[-1].calls if self.streams else None


capture = Capture()


def changed(function):
    """Do what changes arrays in place: now, or when the graph that is being noted is launched."""
    if capture.calls is None:
        function()
    else:
        capture.calls.append(function)


def computed(function):
    """A device array of what function() gives now, or will give whenever the graph that is being noted is launched.

    A graph keeps addresses and no memory, so what is noted here has no array.
    """
    with np.errstate(all="ignore"):
        values = np.asarray(function())
    if capture.calls is None:
        return wrap(values)
    array = _of_layout(values)
    memory = array._a

    def again():
        with np.errstate(all="ignore"):
            memory[...] = function()

    capture.calls.append(again)
    return array


def waits():
    """The host waits for the device: counted, and refused while a stream notes, which breaks off what it notes."""
    counters.synchronisations += 1
    if capture.calls is not None:
        from cupy.cuda.runtime import CUDARuntimeError

        capture.streams[-1].broken = True
        raise CUDARuntimeError(900)


def host(value):
    """The NumPy array inside, or the Python or NumPy scalar itself; anything else is refused as CuPy refuses it."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, (bool, int, float, np.generic)):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def wrap(values):
    """A device array with a copy of `values` in memory of its own."""
    values = np.asarray(values)
    array = _of_layout(values)
    array._a[...] = values
    return array


def _of_layout(values):
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    return ndarray(values.shape, values.dtype, order=order)


def no_library():
    """CuPy lets no stream note what cuBLAS does."""
    if capture.calls is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


class Flags:
    """The flags that CuPy has; `writeable` is none of them."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


class ndarray:
    """An array in `device` memory. Not a numpy.ndarray, and NumPy cannot read it."""

    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        dtype = np.dtype(dtype)
        if dtype.kind not in KINDS:
            raise ValueError(f"Unsupported dtype {dtype}")
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if memptr is not None:
            self._buffer = memptr.mem
            self._a = np.ndarray(shape, dtype, memptr.mem.bytes, memptr.offset, strides)
            return
        self._buffer = allocators[-1](int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._a = self._buffer.bytes.view(dtype).reshape(shape, order=order)
        if self._buffer.used_before:  # a graph's operators before this one may read there what was
            memory = self._buffer.bytes
            changed(lambda: memory.fill(POISON))

    def _view(self, values):
        view = object.__new__(ndarray)
        view._a, view._buffer = values, self._buffer
        return view

    def _view_or_copy(self, function):
        values = function()
        return self._view(values) if np.may_share_memory(values, self._buffer.bytes) else computed(function)

    # --- what it is ---

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: Flags(self._a.flags))
    T = property(lambda self: self._view(self._a.T))
    data = property(lambda self: MemoryPointer(self._buffer, self._a.ctypes.data - self._buffer.bytes.ctypes.data))

    def __len__(self):
        return len(self._a)

    # --- to the host: each of these waits for the device ---

    def get(self, stream=None, order="C", out=None, blocking=True):
        waits()
        return self._a.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __index__(self):
        return operator.index(self.get())

    def __repr__(self):
        return repr(self.get())

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    # --- views, copies ---

    def _key(self, key):
        if isinstance(key, tuple):
            return tuple(self._key(part) for part in key)
        if isinstance(key, np.ndarray):
            raise TypeError(f"Unsupported type {type(key)}")
        if isinstance(key, ndarray):
            if key.dtype == bool:  # the result's size is not known before
                waits()
            return key._a
        return key

    def __getitem__(self, key):
        key = self._key(key)
        key = key if isinstance(key, tuple) else (key,)
        key = key if any(part is Ellipsis for part in key) else (*key, ...)
        return self._view_or_copy(lambda: self._a[key])

    def __setitem__(self, key, value):
        key, value = self._key(key), host(value)
        changed(lambda: self._a.__setitem__(key, value))

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def reshape(self, *shape, order="C"):
        return self._view_or_copy(lambda: self._a.reshape(*shape, order=order))

    def ravel(self, order="C"):
        return self._view_or_copy(lambda: self._a.ravel(order))

    def transpose(self, *axes):
        return self._view(self._a.transpose(*axes))

    def view(self, dtype):
        return self._view(self._a.view(dtype))

    def copy(self, order="C"):
        return computed(lambda: self._a.copy(order))

    def astype(self, dtype, order="K", copy=True):
        if not copy and self.dtype == dtype:
            return self
        return computed(lambda: self._a.astype(dtype, order))

    def dot(self, other):
        return computed(lambda: np.asarray(self._a.dot(host(other))))

    def fill(self, value):
        value = host(value)
        changed(lambda: self._a.fill(value))

    def set(self, values, stream=None):
        if not isinstance(values, np.ndarray) or values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError("set takes a numpy.ndarray of the array's own shape and dtype")
        self._a[...] = values

    # --- arithmetic ---

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **keywords):
        if method != "__call__":
            return NotImplemented
        if ufunc is np.matmul:
            no_library()
        inputs = tuple(map(host, inputs))
        if out is not None:
            changed(lambda: ufunc(*inputs, out=tuple(each._a for each in out), **keywords))
            return out[0]
        return computed(lambda: ufunc(*inputs, **keywords))


def _operators():
    def binary(ufunc):
        return lambda self, other: self.__array_ufunc__(ufunc, "__call__", self, other)

    def reflected(ufunc):
        return lambda self, other: self.__array_ufunc__(ufunc, "__call__", other, self)

    def in_place(ufunc):
        return lambda self, other: self.__array_ufunc__(ufunc, "__call__", self, other, out=(self,))

    def unary(ufunc):
        return lambda self: self.__array_ufunc__(ufunc, "__call__", self)

    def reduction(name):
        def reduce(self, axis=None, dtype=None, out=None, keepdims=False):
            assert out is None
            more = {} if dtype is None else {"dtype": dtype}
            return computed(lambda: getattr(self._a, name)(axis=axis, keepdims=keepdims, **more))
        return reduce

    both = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
            "mod": np.remainder, "pow": np.power, "matmul": np.matmul, "and": np.bitwise_and, "or": np.bitwise_or,
            "xor": np.bitwise_xor}
    for name, ufunc in both.items():
        setattr(ndarray, f"__{name}__", binary(ufunc))
        setattr(ndarray, f"__r{name}__", reflected(ufunc))
        setattr(ndarray, f"__i{name}__", in_place(ufunc))
    for name, ufunc in {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
                        "ne": np.not_equal}.items():
        setattr(ndarray, f"__{name}__", binary(ufunc))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(ndarray, f"__{name}__", unary(ufunc))
    for name in ("sum", "mean", "max", "min", "argmax", "any", "all"):
        setattr(ndarray, name, reduction(name))
    ndarray.__hash__ = None


_operators()
