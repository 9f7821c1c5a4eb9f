"""How a step is computed: the one place where speed is arranged.

    trace       the operators of a step, as the layers call them
    rewrites    fewer passes over memory for the same numbers
    memory      where each value lies, and what is made again instead of kept
    run         the first run, and all others
    compiled    minires.compile; report: what a plan prints
"""
from minires.plan.compiled import compile

__all__ = ["compile"]
