"""One engine in one process, commanded over pipes: `python -m minires.bench.worker`, a JSON object a line both ways.

The first line sets it up (see `workers.Worker`); then "check" writes the first step's results, "time" does one untimed
step, which brings caches and threads back, and then `steps` timed ones, and "memory" says what was used.
"""
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path


def peak_bytes():
    """The most memory this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with that of the process which started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def die_with_parent():
    """Have Linux end this process with its parent, however that ends: a stopped one would see no closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def build(setup):
    """The engine that `setup` describes."""
    import numpy as np

    from minires.bench.engines import MiniresEngine, TorchEngine

    with np.load(setup["data"]) as data:
        x, target = data["x"][:setup["batch"]].copy(), data["target"][:setup["batch"]].copy()
    engine = setup["engine"]
    with np.load(setup["weights"] if engine == "minires" else setup["torch_weights"]) as weights:
        arguments = (setup["model"], dict(weights), x, target, setup["threads"])
    on = {"device": setup.get("device", "cpu")}
    return MiniresEngine(*arguments, **on) if engine == "minires" else TorchEngine(engine, *arguments, **on)


def answer(engine, run, command):
    """The reply to one command."""
    if command["do"] == "check":
        import numpy as np

        np.savez(command["out"], **engine.first_results(command["work"]))
        return {}
    if command["do"] == "first":
        run()
        engine.wait()
        return {"now": time.time()}
    if command["do"] == "time":
        run()
        return {"seconds": engine.seconds(run, command["steps"]) / command["steps"]}
    if command["do"] == "memory":
        return {"peak_bytes": peak_bytes(), "arena_bytes": None, **engine.memory()}
    raise ValueError(f"unknown command {command['do']!r}")


def main():
    """Serve until the pipe closes. Whatever an engine prints goes to stderr, not between the replies."""
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if engine is None:
                engine = build(command)
                run = engine.step if command["work"] == "training" else engine.infer
                engine.wait()
                reply = {"now": time.time()}
            else:
                reply = answer(engine, run, command)
        except Exception as error:  # reported to the parent, which knows whether it can go on without this engine
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
