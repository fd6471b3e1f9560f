"""One process training in one run folder: lock it, decide what to resume, then start the trainer.

PyTorch is imported here last, so that a folder that cannot be used is reported at once.
"""

import contextlib
import io
import sys
from pathlib import Path

from ..cli import several
from ..runs.files import BEST, LAST
from ..runs.folder import check_finished, locked, remove_unfinished, resumes
from ..runs.metrics import finished
from .ranks import Lost, Ranks, joined
from .stop import Stop
from .tensorboard import check_tensorboard


def train(config, folder: Path, resume: bool, extend: int = 0) -> dict:
    """Train, evaluate and sample; returns what summary.json holds. Raises ConfigError, NonFinite, KeyboardInterrupt.

    extend: the steps to which a finished run is trained, 0 for those of the config.
    """
    check_tensorboard(config)
    with Stop(patience_s=5.0 if several() else 0.0) as stop, joined(config) as ranks:
        if ranks.rank:
            stop.says = False
            follow(ranks, folder, stop)
            raise SystemExit(0)
        return lead(ranks, config, folder, resume, extend, stop)


def follow(ranks: Ranks, folder: Path, stop: Stop) -> None:
    """Train as another process than the first of a run. What is to be said, the first one says."""
    try:
        plan = ranks.told()
        if plan is None:
            return
        from .trainer import Trainer

        with contextlib.redirect_stderr(io.StringIO()):
            trainer = Trainer(plan["config"], folder, plan["resume"], stop, ranks)
        trainer.follow()
    except Lost:
        raise SystemExit(2) from None


def lead(ranks: Ranks, config, folder: Path, resume: bool, extend: int, stop: Stop) -> dict:
    """Train as the only process of a run, or the first of several."""
    with locked(folder):
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
            ranks.told(None)
            return done
        stop.patient = True  # an exception in the middle of an import may end the process without a message
        from ..runs.device import kernels

        kernels()  # a wrong TDLM_BACKEND ends here
        from .trainer import Trainer

        stop.patient = False
        if stop.asked:
            raise KeyboardInterrupt
        ranks.told({"config": config, "resume": resume})
        return Trainer(config, folder, resume, stop, ranks).run()
