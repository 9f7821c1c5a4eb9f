"""Signals that ask a run to stop: it finishes its step, saves and says how to go on. A second one stops it at once."""
import os
import signal
import threading
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C; what schedulers send; a closed terminal


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved itself. number: the signal's."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Asked:
    """Whether a run was asked to stop: the signal's number, or None."""

    number = None


@contextmanager
def listening_for_signals(tell=False):
    """Inside, the first of the signals only sets `number` of the Asked that is given; the next has its usual effect.

    A signal that is ignored (nohup) stays ignored. tell: whether a line on stderr answers it. Signals reach a program's main
    thread only: elsewhere nothing is asked.
    """
    asked, before = Asked(), {}

    def put_back():
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def ask(number, _frame):
        asked.number = number
        put_back()
        if tell:
            os.write(2, b"minires: stopping after this step, then saving; once more stops at once\n")

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        put_back()
