"""Train the arms of a comparison, each in a process of its own, and write what was found."""

import signal
import subprocess
import sys
from pathlib import Path

from .. import config as settings
from .arms import alike, pairs_of
from .budgets import ledgers
from .judge import controls

EARLY = "2,10,20,50,100,250,500"  # where the publication shows its lead, and before


def train(config_file: Path, overrides: list[str], folder: Path) -> None:
    """Train in a process of its own, so that memory and time are its own. Raises ConfigError where it fails."""
    if _kept(config_file, overrides, folder):
        print(f"{folder}: finished already", file=sys.stderr)
        return
    command = [sys.executable, "-m", "tdlm_fast.train", str(config_file), *overrides, f"run.dir={folder}", "--resume"]
    # In a session of its own, so that Ctrl-C comes through here alone, from a terminal or not, and once.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_ends_with_parent()
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())  # the run saves, then ends
    asked = False
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the run saves and evaluates; a second one ends it at once
                asked = True
                process.send_signal(signal.SIGINT)
        code = 130 if asked else code
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        raise settings.ConfigError(f"{folder} did not finish (exit code {code}); the same command goes on with it")


def _kept(config_file: Path, overrides: list[str], folder: Path) -> bool:
    """Whether the folder holds this very run, finished. Raises ConfigError where it holds one of other settings."""
    from ..data import dataset
    from ..runs.folder import changes, resumes
    from ..runs.metrics import finished

    summary = finished(folder)
    if summary is None or not (folder / "config.yaml").is_file():
        return False
    config = settings.load(config_file, [*overrides, f"run.dir={folder}"])
    try:
        resumes(config, folder, True)
    except settings.ConfigError as e:
        raise settings.ConfigError(f"{e}; or compare into another folder with --out") from None
    if changes(config, folder, lambda key: key in ("data.path", "data.corpus")):
        found = dataset.load(config.data, config.model.seq_len)
        if found.hash != summary["corpus_hash"]:
            raise settings.ConfigError(f"{folder} was trained on another text than {found.name}; use another --out")
    return True


def keys_of(config_file: Path, overrides: list[str]) -> list[str]:
    """The overrides of one arm: next-token has no loss_weight, so one that is meant for diffusion is taken back."""
    without = [*overrides, "loss_weight=elbo"]
    return without if settings.load(config_file, without).objective == "autoregressive" else overrides


def _ends_with_parent():
    """What a child calls before it starts: Linux then sends it SIGTERM when this process dies, even by kill -9."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, set_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG
    return lambda: prctl(set_signal, signal.SIGTERM)


def compare(arms: list[dict], out: Path) -> dict:
    """Judge the arms and write compare.json, report.html, report.md and figures/ into out; returns compare.json."""
    from dataclasses import asdict, is_dataclass

    from ..runs.files import write_json
    from . import claims, judge, report
    from .records import thinned

    arms = [arm | {"runs": [thinned(run) for run in arm["runs"]]} for arm in arms]
    pairs = pairs_of(arms)
    found = alike(pairs)
    unlike = "; ".join(part for line in found for part in line.split("; ") if "DIFFERENT" in part)
    control = {k: v for k, v in judge.advantages(pairs, 0).items()} if pairs else None
    result = {
        "arms": arms, "claims": judge.judge(pairs, unlike) if pairs else [], "untrained": control,
        "rules": list(judge.RULES), "ledgers": ledgers(pairs), "alike": found,
        "seeds": [d["config"]["seed"] for d, _ in pairs],
        "departures": claims.departures(pairs[0][0]) if pairs else [], "controls": controls(arms),
    }  # fmt: skip

    def plain(value):
        if is_dataclass(value):
            return asdict(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    result = plain(result)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", result, indent=None)
    report.write(result, out)
    return result
