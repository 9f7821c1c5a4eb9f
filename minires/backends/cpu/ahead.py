"""The kernels of backward are compiled in a second process while forward compiles its own.

Numba compiles one function at a time in a process, and the first training step on a new machine meets a dozen kernels, one
after another. So a process that has to compile something in its forward pass starts another (ahead_process.py) and tells it
of each unit that goes forward. That one computes the gradients of such units, of one image, and with them come into Numba's
cache on disk the kernels that this process will need. When backward begins it waits for the other to end, and loads them.

Nothing that is computed comes from there. Should it fail, kernels are compiled where they are met.
"""
import atexit
import json
import os
import subprocess
import sys

from minires.backends.cpu import threads

PATIENCE = 120  # seconds; nothing takes so long that should not be given up


class Ahead:
    """The second process, from the first forward pass to the first backward pass of this one."""

    def __init__(self, module="minires.backends.cpu.ahead_process"):
        self._module, self._units, self._process, self._over = module, [], None, False

    def expect(self, *unit):
        """The gradients of a unit will be needed: shape of x, name of its dtype, shape of the weight, stride, padding."""
        if not self._over and unit not in self._units:
            self._units.append(unit)
            if self._process:
                self._tell(unit)

    def compiling(self):
        """A kernel is being compiled in this process: forward's, if units are expected. With one thread no core is idle."""
        if sys.executable and not self._over and self._process is None and threads.pool.threads > 1:
            for unit in self._units:
                self._tell(unit)

    def wait(self):
        """Until the second process, if there is one, has left its kernels in the cache."""
        if self._over:
            return
        self._over = True
        if self._process:
            try:
                self._process.communicate(timeout=PATIENCE)  # closes its input: no more units
            except (OSError, subprocess.TimeoutExpired):
                self.end()

    def end(self):
        """Stop the second process, wherever it is."""
        self._over = True
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _tell(self, unit):
        if self._over:  # it failed with the unit before
            return
        try:
            self._process = self._process or self._start()
            self._process.stdin.write(json.dumps(unit) + "\n")
            self._process.stdin.flush()
        except OSError:  # it could not be started, or is gone
            self._over = True

    def _start(self):
        # One thread of its own, which also keeps it from starting a third process.
        environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        atexit.register(self.end)
        return subprocess.Popen([sys.executable, "-m", self._module], env=environment, text=True, stdin=subprocess.PIPE,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


ahead = Ahead()
