"""Ctrl-C, SIGTERM and the like while a run trains: the first one ends the step, the second one leaves at once.

A closed terminal or a lost connection sends SIGHUP; schedulers send SIGUSR1 or SIGUSR2 before they end a job.
"""

import contextlib
import math
import os
import signal
import time

ENDING = [getattr(signal, f"SIG{name}") for name in ("TERM", "HUP", "USR1", "USR2") if hasattr(signal, f"SIG{name}")]


def ending_signals() -> list:
    """Return the signals other than Ctrl-C that end a run; nohup has this process ignore SIGHUP, and so it stays."""
    return [name for name in ENDING if name is signal.SIGTERM or signal.getsignal(name) is not signal.SIG_IGN]


class Stop:
    """Raise KeyboardInterrupt on a signal that ends a run, inside `with`; while `patient`, the first sets `asked`.

    patience_s: a signal that repeats another within so many seconds is ignored. torchrun passes on to its processes
    what the terminal has sent to them already.
    """

    asked = patient = False
    says = True  # on stderr that it was asked

    def __init__(self, patience_s: float = 0.0):
        self.patience_s, self.last = patience_s, -math.inf

    def __enter__(self):
        self.before = {name: signal.signal(name, self) for name in (signal.SIGINT, *ending_signals())}
        return self

    def __exit__(self, *error):
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def __call__(self, number, frame):
        before, self.last = self.last, time.monotonic()
        if self.last - before < self.patience_s:
            return
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self.asked = True
        if not self.says:
            return
        with contextlib.suppress(OSError):  # print is not safe in a handler, and stderr may be closed
            os.write(2, b"\nstopping after this step or evaluation; again to leave at once\n")
