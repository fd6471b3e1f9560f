"""Train the arms of a comparison, each in its own process, and write what was found."""

import ctypes
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .. import config as settings
from ..runs.files import write_figures
from ..runs.folder import check_finished, resumes
from ..runs.metrics import finished
from ..training.stop import ending_signals
from . import claims, judge, report
from .arms import OBJECTIVES, alike, arms_of, check_alike, check_tokens, identity, pairs_of
from .budgets import ledgers
from .records import read, recorded, thinned

# What a report raises where a kept file holds figures of the wrong kind under a valid seal
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)
EARLY = "2,10,20,50,100,250,500"  # steps at which the publication shows its lead, and earlier ones


def train_arms(config_file: Path, overrides: list[str], controls: list[Path], seeds: int, out: Path) -> list[Path]:
    """Train both objectives and the control arms on every seed; return the run folders. Finished runs are kept."""
    jobs, first = _jobs(config_file, overrides, controls)
    folders: list[Path] = []
    for seed in range(first, first + seeds):
        for file, name, keys in jobs:
            folders.append(out / f"{name}-seed{seed}")
            print(f"run {len(folders)} of {seeds * len(jobs)}: {name}, seed {seed}", file=sys.stderr)
            train(file, [*keys, f"seed={seed}"], folders[-1])
    return folders


def _jobs(config_file: Path, overrides: list[str], controls: list[Path]) -> tuple[list[tuple[Path, str, list]], int]:
    """Return ([(config file, name of the arm, its overrides)], the first seed). Raises ConfigError for a wrong key."""
    given = [o.partition("=")[0] for o in overrides]
    extra = overrides if "eval.early" in given else [f"eval.early={EARLY}", *overrides]
    jobs = [
        *((config_file, o, keys_of(config_file, [*extra, f"objective={o}"])) for o in OBJECTIVES),
        *((arm, arm.stem, keys_of(arm, extra)) for arm in controls),
    ]
    configs = [settings.load(file, keys) for file, _, keys in jobs]
    for (file, *_), config in zip(jobs[len(OBJECTIVES) :], configs[len(OBJECTIVES) :], strict=True):
        check_tokens(configs[0], config, f"--arms: {config_file} and {file}")
    first, names = configs[0].seed, {}
    for (file, name, _), config in zip(jobs, configs, strict=True):
        same = identity(settings.flatten(config) | {"seed": first})
        if name in names or same in names.values():
            shared = "the same settings with these keys" if same in names.values() else "the same name"
            raise settings.ConfigError(f"--arms: {file} has {shared} as another arm")
        names[name] = same
    return jobs, first


def keys_of(config_file: Path, overrides: list[str]) -> list[str]:
    """Return the overrides of one arm. Autoregressive has no loss_weight: one that is meant for diffusion is undone."""
    without = [*overrides, "loss_weight=elbo"]
    either = [*without, "noise.sampling=independent"]  # loads with both objectives
    return without if settings.load(config_file, either).objective == "autoregressive" else overrides


def train(config_file: Path, overrides: list[str], folder: Path) -> None:
    """Train in a new process, so that memory and time are those of one run.

    Raises ConfigError where it fails, and NonFinite where a loss or gradient was not finite.
    """
    if _kept(config_file, overrides, folder):
        print(f"{folder}: finished already", file=sys.stderr)
        return
    command = [sys.executable, "-m", "tdlm_fast.train", str(config_file), *overrides, f"run.dir={folder}", "--resume"]
    # In a session of its own, so that Ctrl-C reaches it only through this process, and once.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=ends_with_parent()
    )  # fmt: skip

    def stop(number, frame):  # the run saves, then ends
        process.terminate()

    before = {name: signal.signal(name, stop) for name in ending_signals()}
    interrupted = False
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the run saves and evaluates; a second one ends it at once
                interrupted = True
                process.send_signal(signal.SIGINT)
        code = 130 if interrupted else code
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code == 2:  # it has said on one line what is to be mended
        sys.exit(2)
    if code == 1:
        raise settings.NonFinite(f"{folder} did not finish: a loss was not finite")
    if code:
        raise settings.ConfigError(f"{folder} did not finish (exit code {code}); the same command resumes it")


def _kept(config_file: Path, overrides: list[str], folder: Path) -> bool:
    """Return whether the folder holds this run, finished. Raises ConfigError where it holds another one."""
    summary = finished(folder, remake=True)
    if summary is None or not (folder / "config.yaml").is_file():
        return False
    config = settings.load(config_file, [*overrides, f"run.dir={folder}"])
    try:
        resumes(config, folder, True)
        check_finished(config, folder, summary)
    except settings.ConfigError as e:
        raise settings.ConfigError(f"{e}; or compare into another folder with --out") from None
    return True


def ends_with_parent():
    """Return a function for a child to call first: on Linux it gets SIGTERM when this process dies, even by kill -9."""
    if sys.platform != "linux":
        return None
    prctl, set_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG
    return lambda: prctl(set_signal, signal.SIGTERM)


def compare_runs(sources: list[Path], out: Path, *, sequences: int, draws: int, case: dict | None = None) -> dict:
    """Compare finished runs, given as run folders or compare.json files, and write the report into out.

    sequences: of the exact likelihoods, which are computed for each run folder first; 0 leaves the table out. draws: of
    the published metric. case: the contents of a claim file, as in `compare`. Returns the contents of compare.json.
    Raises ConfigError and NonFinite, naming the run.
    """
    records = {f: recorded(f) for f in sources if f.is_file()}

    def runs() -> list[tuple[Path, dict]]:
        return [(f / run["folder"] if f in records else f, run) for f in sources for run in records.get(f) or [read(f)]]

    folders, read_runs = zip(*runs(), strict=True)
    check_alike(list(read_runs), list(folders))  # before the tables take their time
    if sequences:
        from ..evaluation.table import likelihoods  # loads torch

        for folder in (f for f in sources if f not in records):
            print(f"{folder}: likelihoods", file=sys.stderr)
            try:
                metric = likelihoods(folder, sequences=sequences, draws=draws)["published"]
            except settings.NonFinite as e:
                raise settings.NonFinite(f"{folder}: {e}") from None
            if metric is None:
                why = "the rows of its test split have no published metric, which the claims are judged by"
                raise settings.ConfigError(f"{folder}: {why}; --sequences 0 compares without it")
    try:
        return compare(arms_of([run for _, run in runs()]), out, case)
    except DAMAGED as e:
        if not records or isinstance(e, settings.ConfigError):
            raise
        files, why = ", ".join(map(str, records)), f"{type(e).__name__}: {e}"
        fix = "restore it, or compare the folders of its runs"
        raise settings.ConfigError(f"{files} does not hold what the report shows ({why}); {fix}") from e


def compare(arms: list[dict], out: Path, case: dict | None = None) -> dict:
    """Judge the arms and write compare.json, report.html, report.md and figures/ into out; return compare.json.

    case: the contents of a claim file, by default that of TDLM v1.2.
    """
    case = case or claims.load()
    arms = [arm | {"runs": [thinned(run) for run in arm["runs"]]} for arm in arms]
    pairs = pairs_of(arms)
    findings = alike(pairs)
    unlike = "; ".join(part for line in findings for part in line.split("; ") if "DIFFERENT" in part)
    result = {
        "arms": arms, "claims": judge.judge(pairs, unlike, case) if pairs else [],
        "untrained": judge.untrained(pairs, case) if pairs else None,
        "rules": judge.rules(case), "ledgers": ledgers(pairs), "alike": findings,
        "seeds": [d["config"]["seed"] for d, _ in pairs],
        "departures": claims.departures(pairs[0], case) if pairs else [],
        "controls": judge.controls(arms, case), "headline": judge.headline(arms, case),
        "published": {k: case[k] for k in ("source", "address", "text", "runs", "note", "beside")},
    }  # fmt: skip
    result = json.loads(json.dumps(result, default=asdict))  # intervals become dicts
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out / "compare.json", result, indent=None)
    report.write(result, out)
    return result
