"""One process training in one run folder: lock it, decide what to resume, then start the trainer.

PyTorch is imported here last, so that a folder that cannot be used is reported at once.
"""

import sys
from pathlib import Path

from ..runs.files import BEST, LAST
from ..runs.folder import check_finished, locked, remove_unfinished, resumes
from ..runs.metrics import finished
from .stop import Stop
from .tensorboard import check_tensorboard


def train(config, folder: Path, resume: bool, extend: int = 0) -> dict:
    """Train, evaluate and sample; returns what summary.json holds. Raises ConfigError, NonFinite, KeyboardInterrupt.

    extend: the steps to which a finished run is trained, 0 for those of the config.
    """
    check_tensorboard(config)
    with Stop() as stop, locked(folder):
        remove_unfinished(folder)
        if extend:
            from .extension import extended

            config, resume = extended(config, folder, extend), True
        resume = resumes(config, folder, resume)
        if (
            resume
            and (done := finished(folder, remake=True))
            and ((folder / BEST).is_file() or not (folder / LAST).is_file())
        ):
            check_finished(config, folder, done)
            print(f"{folder} is finished already", file=sys.stderr)
            return done
        stop.patient = True  # an exception in the middle of an import may end the process without a message
        from ..runs.device import kernels

        kernels()  # a wrong TDLM_BACKEND ends here
        from .trainer import Trainer

        stop.patient = False
        if stop.asked:
            raise KeyboardInterrupt
        return Trainer(config, folder, resume, stop).run()
