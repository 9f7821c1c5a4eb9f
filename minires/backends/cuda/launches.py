"""The launches of a program, captured once as CUDA graphs and run again and again without Python.

    launches = Launches(0)
    with launches.noting([], images):
        for each operator:
            launches.expect([])
            launches.call(operator, ...)         # computes, and is noted
    launches.run()                               # computes it all again, on the same memory

A training step of a small network is some two hundred launches of a few microseconds, and Python takes 50 to prepare one. A
graph goes to the device in one call, so operators that follow one another are captured into one. What no graph can hold
stands between two graphs and is called each time: what the host computes (`here`), and products by cuBLAS, which CuPy lets
no stream capture: networks of more channels than conv.NARROW. Each operator is tried by itself first, which computes
nothing: so a graph ends before the one that it cannot hold.

While a stream captures nothing is computed. A graph is launched when it ends, before what follows it is called.

Arguments of a graph are addresses. Arrays come from a pool that nobody else uses, and memory that a program is done with
goes to the operators that follow, in the graphs too, since they run in the same order each time. So nothing is kept here
that would keep memory from that: what is called again knows addresses only (`_Memory.at`). What comes from outside of the
program, weights and constants, is kept by whoever runs it.
"""
import weakref
from contextlib import contextmanager
from contextvars import ContextVar

import cupy

_REFUSALS = (NotImplementedError, cupy.cuda.runtime.CUDARuntimeError)  # what CuPy and CUDA say to what no graph can hold
_memories = weakref.WeakSet()
_capturing = ContextVar("minires_capturing", default=False)


def held():
    """Bytes of the device that CuPy's pool and those of programs keep."""
    return cupy.get_default_memory_pool().total_bytes() + sum(memory.size for memory in _memories)


def here(function, *arguments):
    """What a function returns of which nobody knows what it does: no graph holds it, it is called each time."""
    if _capturing.get():
        raise NotImplementedError("what is computed here is no launch")
    return function(*arguments)


class _Memory:
    """A pool, and the stream that captures with it, since a pool keeps freed memory for its stream.

    Its blocks are kept here too: a pool that finds the device full would give back what is free, where graphs still work.
    """

    def __init__(self):
        self._blocks, self.device = [], cupy.cuda.Device().id

        def block(size, blocks=self._blocks):  # that refers to no `self`: what is dropped goes back at once
            blocks.append(cupy.cuda.Memory(size))
            return cupy.cuda.MemoryPointer(blocks[-1], 0)

        self._pool, self._stream = cupy.cuda.MemoryPool(block), cupy.cuda.Stream(non_blocking=True)
        _memories.add(self)

    @property
    def size(self):
        return sum(block.size for block in self._blocks)

    @contextmanager
    def used(self):
        """Inside, arrays lie in this memory."""
        with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            yield

    def begin(self):
        """From now on what is launched inside `capturing` is captured, not computed."""
        self._stream.begin_capture()

    def end(self):
        """-> the graph of what was captured."""
        return self._stream.end_capture()

    @contextmanager
    def capturing(self):
        """Inside, what is launched is captured."""
        token = _capturing.set(True)
        try:
            with self.used():
                yield
        finally:
            _capturing.reset(token)

    def captured(self, function, *arguments):
        """A graph of what a function launches, or None where no graph can hold it."""
        refused = False
        self.begin()
        try:
            with self.capturing():
                function(*arguments)
        except _REFUSALS:
            refused = True
        finally:
            try:
                graph = self.end()
            except _REFUSALS:  # it was broken off within
                refused = True
        return None if refused else graph

    def at(self, value):
        """`value` with arrays in the place of those in it, nested tuples too, that lie where they lie and keep no memory."""
        if isinstance(value, tuple):
            return tuple(map(self.at, value))
        if not isinstance(value, cupy.ndarray) or not (value.flags.c_contiguous or value.flags.f_contiguous):
            return value  # one with gaps stays as it is: it may only cost memory
        memory = cupy.cuda.UnownedMemory(value.data.ptr, value.nbytes, self, self.device)
        return cupy.ndarray(value.shape, value.dtype, cupy.cuda.MemoryPointer(memory, 0), value.strides)


class _Operator:
    """An operator that is called again: its results go where they went the first time."""

    def __init__(self, function, arguments, results, memory):
        self.function, self._results = function, memory.at(_several(results))
        # A layer that is called may keep what it was given for its backward: that memory is nobody else's.
        self.arguments = arguments if function is here else memory.at(arguments)

    def __call__(self):
        for place, result in zip(self._results, _several(self.function(*self.arguments)), strict=True):
            if place is not None:
                place[...] = cupy.asarray(result)


class Launches:
    """A program's launches in order, and their memory. Not thread-safe, like the layers."""

    def __init__(self, slab_bytes):
        """slab_bytes is of no use: where results lie is the pool's affair."""
        self._memory, self._trial, self._parts, self._operators, self._stretch = _Memory(), None, [], [], []

    @contextmanager
    def noting(self, steps, images):
        """Inside, what is called by `call` is noted. steps and images are of no use: nothing is compiled ahead."""
        self._trial = _Memory()
        try:
            yield
            self._launch()
        finally:
            if self._stretch:  # an error came in between
                self._stretch = []
                self._ended()
            self._trial = None

    def expect(self, offsets):
        """An operator begins."""
        self._operators.append(())

    def call(self, function, *arguments):
        """What an operator returns, which is there when the program has been noted: see the module's docstring."""
        if self._trial.captured(function, *arguments) is None:
            self._launch()
            results = self._placed(function(*arguments))
            operator = _Operator(function, arguments, results, self._memory)
            self._parts.append(operator)
        else:
            if not self._stretch:
                self._memory.begin()
                self._stretch = [None]  # until the first is captured: there is a capture to be ended
            with self._memory.capturing():
                results = function(*arguments)
            operator = _Operator(function, arguments, results, self._memory)
            self._stretch.append(operator)
        self._operators[-1] = (operator,)
        return results

    @property
    def usable(self):
        """Whether the current device is the one that launches were noted for."""
        return cupy.cuda.Device().id == self._memory.device

    @property
    def held(self):
        """Bytes of the pool."""
        return self._memory.size

    def run(self):
        """Compute everything again, on the caller's stream."""
        for part in self._parts:
            part()

    def operators(self):
        """For each operator, in order, a function that launches what it launches: for timing them one by one.

        The results of those that a graph can hold go nowhere.
        """
        memory, found = _Memory(), []
        for operator in self._operators:
            graphs = [memory.captured(each.function, *each.arguments) for each in operator]
            runs = [each if graph is None else graph.launch for each, graph in zip(operator, graphs, strict=True)]
            found.append(lambda runs=runs, memory=memory: [run() for run in runs])
        return found

    def _placed(self, results):
        """Copies of the results of what was called, in the program's memory."""
        placed = []
        for result in _several(results):
            if result is not None:
                result = cupy.asarray(result)
                with self._memory.used():
                    place = cupy.empty(result.shape, result.dtype)
                place[...] = result
                result = place
            placed.append(result)
        return tuple(placed) if isinstance(results, tuple) else placed[0] if placed else None

    def _launch(self):
        """End the graph that is being captured, and compute it; operators that it cannot hold after all are called."""
        operators, self._stretch = self._stretch[1:], []
        if operators:
            graph = self._ended()
            parts = operators if graph is None else [graph.launch]
            for part in parts:
                part()
            self._parts += parts

    def _ended(self):
        try:
            return self._memory.end()
        except _REFUSALS:
            return None


def _several(results):
    return results if isinstance(results, tuple) else () if results is None else (results,)
