"""Ctrl-C and SIGTERM while a run trains: the first one ends the step, the second one leaves at once."""

import contextlib
import os
import signal


class Stop:
    """Raise KeyboardInterrupt on Ctrl-C or SIGTERM inside `with`; while `patient`, the first one only sets `asked`."""

    asked = patient = False

    def __enter__(self):
        self.before = {name: signal.signal(name, self) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def __call__(self, number, frame):
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(OSError):  # print is not safe in a handler, and stderr may be closed
            os.write(2, b"\nstopping after this step or evaluation; again to leave at once\n")
