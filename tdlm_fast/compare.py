"""Head to head: `python -m tdlm_fast.compare configs/tiny.yaml [key=value …] [--seeds 3] [--out DIR]`.

Trains diffusion and autoregressive with everything but the objective alike, each run in a process of its own, evaluates
both on the same tokens and writes DIR/report.html, report.md and compare.json. The same command goes on after any
interruption: finished runs and finished tables are kept. --arms adds control arms (other YAML files) to the picture;
--from RUN_A RUN_B … compares finished runs, and an earlier compare.json among them stands for the runs it holds.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from . import config as settings
from .verb import verb

EARLY = "2,10,20,50,100,250,500"  # where the publication shows its lead, and before
OBJECTIVES = ("diffusion", "autoregressive")


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
    from . import data
    from .run import changes, finished, goes_on

    summary = finished(folder)
    if summary is None or not (folder / "config.yaml").is_file():
        return False
    config = settings.load(config_file, [*overrides, f"run.dir={folder}"])
    try:
        goes_on(config, folder, True)
    except settings.ConfigError as e:
        raise settings.ConfigError(f"{e}; or compare into another folder with --out") from None
    if changes(config, folder, lambda key: key in ("data.path", "data.corpus")):
        found = data.load(config.data, config.model.seq_len)
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


def read(folder: Path) -> dict:
    """A finished run: config, summary, evaluations (with training losses in "losses"), table and tasks if there."""
    from . import log
    from .run import figures, summary_of
    from .verb import command

    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"{folder} is no run folder: it holds no config.yaml")
    summary = summary_of(folder)
    if not summary.get("finished"):
        raise settings.ConfigError(f"{folder} is not finished: {command('train', 'CONFIG', '--resume')} ends it")
    entries = log.entries(folder / "metrics.jsonl")[0]
    config = settings.flatten(settings.load(folder / "config.yaml"))
    evaluations = list({e["step"]: e for e in entries if "valid" in e}.values())
    if not evaluations:
        file = folder / "metrics.jsonl"
        raise settings.ConfigError(f"{file} holds no evaluation to compare; restore it, or leave the run out")
    counted = {e["step"]: e for e in entries if "loss" in e}
    places = ("step", "loss", "tokens", "seconds", "loss_tokens")
    for e in evaluations:  # runs of before this file counted no tokens at evaluations
        e.setdefault("tokens", counted.get(e["step"], {}).get("tokens", 0))
        e.setdefault("loss_tokens", counted.get(e["step"], {}).get("loss_tokens"))
    run = {
        "folder": folder.name, "config": config, "summary": summary, "evaluations": evaluations, "table": None,
        "losses": [tuple(e.get(k) for k in places) for e in counted.values()], "tasks": None,
    }  # fmt: skip
    table, tasks = (figures(folder / name) for name in ("likelihoods.json", "tasks.json"))
    if table and _of(summary, table, split="test"):
        run["table"] = table
    run["tasks"] = {k: v for k, v in tasks.items() if _of(summary, v, checkpoint="best")} or None
    for name, ignored in (("likelihoods.json", table and not run["table"]), ("tasks.json", tasks and not run["tasks"])):
        if ignored:
            print(f"{folder / name} is of other weights or another split, and is not used", file=sys.stderr)
    return sound(run, folder)


PARTS = ("folder", "config", "summary", "evaluations", "table", "losses", "tasks")  # of a run in compare.json


def recorded(file: Path) -> list[dict]:
    """The runs that a compare.json holds, as read() gives them. Raises ConfigError where it is none."""
    from .run import figures

    try:
        runs = [{k: run[k] for k in PARTS} for arm in figures(file)["arms"] for run in arm["runs"] or [{}]]
        runs = [run | {"config": settings.flatten(settings.build(run["config"]))} for run in runs]
    except (KeyError, TypeError, AttributeError):
        raise settings.ConfigError(f"{file} is no compare.json of finished runs; give a run folder or one") from None
    return [sound(run, file / run["folder"]) for run in runs]


def _numbers(run: dict):
    """(name, value) of the figures of a run that every verdict rests on."""
    for part, keys in (("summary", ("steps", "seconds", "parameters")), ("test", ("nats_per_token", "stderr", "ppl"))):
        of = run["summary"] if part == "summary" else run["summary"][part]
        yield from ((f"{part}.{k}", of[k]) for k in keys)
    yield "the first step", run["evaluations"][0]["step"]
    for e in run["evaluations"]:
        yield from ((f"{k} of step {e['step']}", e["valid"][k]) for k in ("nats_per_token", "stderr", "ppl"))
        if "published" in e:
            yield from ((f"{k} of step {e['step']}", e["published"][k]) for k in ("reweighted_loss", "stderr"))
    if table := run["table"]:
        yield from ((f"{k} of the table", table["rows"][0][k]) for k in ("nats_per_token", "low", "high"))
        yield from ((f"{k} of the table", table["published"][k]) for k in ("reweighted_loss", "stderr"))
        yield "levels of the table", len(table["levels"]["loss"]) + len(table["per_sequence"])
    for name, e in (run["tasks"] or {}).items():
        yield from ((f"{k} of {name}", e[k]) for k in ("acc", "n", "chance", "seconds"))


def sound(run: dict, where: Path) -> dict:
    """The run, if it can be judged. Raises ConfigError where a figure that a verdict rests on is missing or none."""
    try:
        for name, value in _numbers(run):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}")
        if run["summary"]["seconds"] <= 0:
            raise ValueError("summary.seconds is 0")
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
        what = f"{e.args[0]!r} is missing" if isinstance(e, KeyError) else e
        raise settings.ConfigError(f"{where} cannot be judged: its figures are damaged ({what})") from None
    return run


def _of(summary: dict, figures: dict, **also) -> bool:
    """Whether kept figures are of the run's best weights and its text; also: what else their key must say."""
    wanted = also | {"step": summary["best_step"], "corpus": summary["corpus_hash"]}
    if "weights" in summary and "weights" in figures.get("key", {}):  # earlier ones do not say
        wanted["weights"] = summary["weights"]
    return wanted.items() <= figures.get("key", {}).items()


SCORED = ("data.tokenizer", "data.layout", "model.seq_len")  # keys that decide which tokens are scored


def check_alike(runs: list[dict], folders: list[Path]) -> None:
    """Raise ConfigError unless all runs were scored on the same tokens, and no run is there twice."""
    first = runs[0]
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        here, there = first["config"], run["config"]
        other = [f"{k} is {here[k]}, {there[k]}" for k in SCORED if here[k] != there[k]]
        if first["summary"]["corpus_hash"] != run["summary"]["corpus_hash"]:
            other.append(f"the text is {first['summary']['corpus']}, {run['summary']['corpus']}, not the same")
        if other:
            both = f"{folders[0]} and {folder}"
            raise settings.ConfigError(f"{both} are not scored on the same tokens: {'; '.join(other)}")
    seen: dict[str, Path] = {}
    for run, folder in zip(runs, folders, strict=True):
        who = identity(run["config"])
        if who in seen:
            raise settings.ConfigError(f"{seen[who]} and {folder} are the same run: same settings, same seed")
        seen[who] = folder


IGNORED = ("run.dir", "run.wandb", "device", "data.cache", "data.path")  # keys that decide no number


def identity(config: dict) -> str:
    """What two runs share that are one run twice: the keys that decide numbers, the seed too."""
    return json.dumps({k: v for k, v in config.items() if k not in IGNORED}, sort_keys=True)


def _differences(a: dict, b: dict) -> list[str]:
    """Keys in which two configs differ, apart from the seed and what decides no number."""
    ignored = (*IGNORED, "seed", *(("loss_weight",) if a["objective"] != b["objective"] else ()))  # next-token has none
    return [k for k in a if a[k] != b[k] and k not in ignored]


def label(config: dict, base: dict) -> str:
    """A run's name: its objective and what sets it apart from the run it is compared with."""
    apart = [f"{k.rpartition('.')[2]}={config[k]}" for k in _differences(config, base) if k != "objective"]
    return " ".join([config["objective"], *apart])


def arms_of(runs: list[dict]) -> list[dict]:
    """Runs grouped to arms: those that differ in the seed alone are one. The first diffusion and the first next-token
    arm come first. [{"label", "objective", "runs"}]"""
    order = sorted(range(len(runs)), key=lambda i: OBJECTIVES.index(runs[i]["config"]["objective"]) * len(runs) + i)
    firsts = {}
    for i in order:
        firsts.setdefault(runs[i]["config"]["objective"], i)
    order = [*firsts.values(), *[i for i in order if i not in firsts.values()]]
    arms: list[dict] = []
    for i in order:
        run = runs[i]
        name = label(run["config"], runs[order[0]]["config"])
        same = [a for a in arms if a["label"] == name and not _differences(a["runs"][0]["config"], run["config"])]
        if same:
            same[0]["runs"].append(run)
        else:
            arms.append({"label": name, "objective": run["config"]["objective"], "runs": [run]})
    for arm in arms:
        arm["runs"].sort(key=lambda r: r["config"]["seed"])
    return arms


def pairs_of(arms: list[dict]) -> list[tuple[dict, dict]]:
    """(diffusion run, autoregressive run) of every seed that both first arms have."""
    first = {}
    for arm in arms:
        first.setdefault(arm["objective"], {r["config"]["seed"]: r for r in arm["runs"]})
    if len(first) < 2:
        return []
    d, a = (first[o] for o in OBJECTIVES)
    return [(d[s], a[s]) for s in d if s in a]


def controls(arms: list[dict]) -> list[dict]:
    """Every further arm against the first arm of the other objective, on the seeds that both have, its claims about
    losses judged as the first pair's are: [{"label", "objective", "seeds", "claims", "first"}], first the advantage on
    the test split of the first arms on those seeds."""
    from . import claims

    first, out = {}, []
    for arm in arms:
        first.setdefault(arm["objective"], arm)
    for arm in arms if len(first) == 2 else ():
        if arm is first[arm["objective"]]:
            continue
        sides = [arm if o == arm["objective"] else first[o] for o in OBJECTIVES]
        if pairs := pairs_of(sides):
            judged = [c for c in claims.judge(pairs) if c["kind"] == "loss"]
            seeds = [d["config"]["seed"] for d, _ in pairs]
            same = [pair for pair in pairs_of(list(first.values())) if pair[0]["config"]["seed"] in seeds]
            about = {"label": arm["label"], "objective": arm["objective"], "seeds": seeds, "claims": judged}
            out.append(about | {"first": claims.advantages(same, "test")["right"] if same else None})
    return out


def flops(run: dict, step: int, loss_tokens: int | None) -> float | None:
    """Floating-point operations of training up to a step: 2 a multiply and add, three times the forward pass.

    blocks 6 P a token and 12 L D T for the attention, over all B T places (padding is computed too); head 6 D V a token
    that bears loss. Chowdhery et al. 2022, appendix B, with the head counted where it runs.
    """
    c, parts = run["config"], run["summary"]["parameters_by_part"]
    if loss_tokens is None:
        return None
    places = step * c["train.batch_size"] * c["model.seq_len"]
    attention = 12 * c["model.layers"] * c["model.width"] * c["model.seq_len"]
    head = parts["head"] or parts["embedding"]  # a tied head has the embedding's rows
    return float(places * (6 * parts["blocks"] + attention) + 6 * head * loss_tokens)


def _at(run: dict, value, budget: float) -> tuple[float, float] | None:
    """(validation nats, their standard error) of a run at a budget of value(run, evaluation), on straight lines."""
    points = [(value(run, e), e["valid"]) for e in run["evaluations"]]
    for (x0, e0), (x1, e1) in zip(points, points[1:], strict=False):
        if x0 <= budget <= x1 and x1 > x0:
            y0, y1 = e0["nats_per_token"], e1["nats_per_token"]
            return y0 + (y1 - y0) * (budget - x0) / (x1 - x0), max(e0["stderr"], e1["stderr"])
    return None


LEDGERS = {
    "optimizer steps": lambda run, e: e["step"],
    "training FLOPs": lambda run, e: flops(run, e["step"], e["loss_tokens"]),
    "loss-bearing tokens": lambda run, e: e["loss_tokens"],
    "seconds of training": lambda run, e: e["seconds"],
}


def ledgers(pairs: list[tuple[dict, dict]]) -> list[dict]:
    """Both objectives at one budget, the largest that all reached, for each way of counting it: [{"ledger", "budget",
    "diffusion", "autoregressive", "difference"}], validation nats per token, the difference diffusion's advantage."""
    from .claims import over_seeds

    out = []
    for name, value in LEDGERS.items() if pairs else ():
        ends = [value(run, run["evaluations"][-1]) for pair in pairs for run in pair]
        if any(v is None for pair in pairs for run in pair for v in (value(run, e) for e in run["evaluations"])):
            continue
        found = [[_at(run, value, min(ends)) for run in pair] for pair in pairs]
        if any(at is None for both in found for at in both):
            continue
        row = {"ledger": name, "budget": min(ends)}
        row |= {o: sum(both[i][0] for both in found) / len(found) for i, o in enumerate(OBJECTIVES)}
        errors = [math.hypot(d[1], a[1]) for d, a in found]
        out.append(row | {"difference": over_seeds([a[0] - d[0] for d, a in found], errors)})
    return out


def alike(pairs: list[tuple[dict, dict]]) -> list[str]:
    """What was found alike, or not, in the runs of each seed: settings, weights before step 1, batches."""
    words = []
    for d, a in pairs:
        seed, other = d["config"]["seed"], [k for k in _differences(d["config"], a["config"]) if k != "objective"]
        hashes = [r["evaluations"][0].get("initial_weights") for r in (d, a)]
        weights = (
            "not recorded" if None in hashes else f"equal ({hashes[0]})" if hashes[0] == hashes[1] else "DIFFERENT"
        )
        shared = {e["step"]: e["batch"] for e in d["evaluations"] if "batch" in e}
        seen = [(shared[e["step"]], e["batch"]) for e in a["evaluations"] if e["step"] in shared and "batch" in e]
        what = f"batches before {len(seen)} evaluations" if seen else "batches"
        if not seen and d["config"]["data.layout"] == "paragraphs":  # runs of before batches were recorded
            shared = {step: n for step, _, n, *_ in d["losses"]}
            seen = [(shared[step], n) for step, _, n, *_ in a["losses"] if step in shared]
            what = f"tokens of the batches at {len(seen)} logged steps"
        batches = "not recorded" if not seen else "equal" if all(x == y for x, y in seen) else "DIFFERENT"
        text = "equal" if d["summary"]["corpus_hash"] == a["summary"]["corpus_hash"] else "DIFFERENT"
        words.append(
            f"seed {seed}: settings apart from the objective {'DIFFERENT: ' + ', '.join(other) if other else 'equal'}; "
            f"text {text}; weights before the first step {weights}; {what} {batches}"
        )
    return words


def compare(arms: list[dict], out: Path) -> dict:
    """Judge the arms and write compare.json, report.html, report.md and figures/ into out; returns compare.json."""
    from dataclasses import asdict, is_dataclass

    from . import claims, report
    from .run import write_json

    pairs = pairs_of(arms)
    found = alike(pairs)
    unlike = "; ".join(part for line in found for part in line.split("; ") if "DIFFERENT" in part)
    control = {k: v for k, v in claims.advantages(pairs, 0).items()} if pairs else None
    result = {
        "arms": arms, "claims": claims.judge(pairs, unlike) if pairs else [], "untrained": control,
        "rules": list(claims.RULES), "ledgers": ledgers(pairs), "alike": found,
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
    write_json(out / "compare.json", result)
    report.write(result, out)
    return result


def main(argv=None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m tdlm_fast.compare", description=__doc__.split("\n")[0],
        epilog="keys, their defaults and meanings:\n" + settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("config", nargs="?", type=Path, help="YAML file, as configs/tiny.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--seeds", type=int, default=1, help="seeds, from the config's upwards")
    p.add_argument("--out", type=Path, help="folder of runs and report (default: runs/compare-NAME)")
    p.add_argument("--arms", type=Path, nargs="+", default=[], help="YAML files of control arms, as configs/controls/*")
    p.add_argument("--from", dest="runs", type=Path, nargs="+", default=[], metavar="RUN", help="finished runs, or a "
                   "compare.json that holds some; nothing is trained")
    p.add_argument("--sequences", type=int, default=64, help="test sequences of the exact likelihoods, 2 or more; "
                   "0: no table, so neither they nor the unigram baseline nor the published metric on the test split")
    p.add_argument("--draws", type=int, default=16, help="draws of the published metric on the test split")
    a = p.parse_intermixed_args(argv)
    try:
        folders = list(a.runs)
        if a.seeds < 1 or a.sequences < 0 or a.sequences == 1 or a.draws < 1:
            raise settings.ConfigError("--seeds and --draws must be at least 1, --sequences 0 or at least 2")
        if a.out and (file := next((p for p in (a.out, *a.out.parents) if p.exists() and not p.is_dir()), None)):
            raise settings.ConfigError(f"--out {a.out}: {file} is a file; give a folder")
        if a.runs:
            if a.config or a.arms or a.seeds != 1:
                raise settings.ConfigError("--from compares finished runs: it takes no config, --arms or --seeds")
            if len(a.runs) < 2 and not a.runs[0].is_file():
                raise settings.ConfigError("--from needs two runs or more")
            out = a.out or Path("runs") / f"compare-{a.runs[0].stem}"
        else:
            if not a.config:
                raise settings.ConfigError("give a config, as configs/tiny.yaml, or --from RUN_A RUN_B")
            if any(o.startswith(("objective=", "seed=", "run.dir=")) for o in a.overrides):
                raise settings.ConfigError("compare sets objective, seed and run.dir; use --seeds and --out")
            out = a.out or Path("runs") / f"compare-{a.config.stem}"
            given = [o.partition("=")[0] for o in a.overrides]
            extra = a.overrides if "eval.early" in given else [f"eval.early={EARLY}", *a.overrides]
            jobs = [
                *((a.config, o, keys_of(a.config, [*extra, f"objective={o}"])) for o in OBJECTIVES),
                *((arm, arm.stem, keys_of(arm, extra)) for arm in a.arms),
            ]
            configs = [settings.load(file, keys) for file, _, keys in jobs]  # a bad key stops here, at once
            first, seen = configs[0].seed, {}
            for (file, name, _), config in zip(jobs, configs, strict=True):
                who = identity(settings.flatten(config) | {"seed": first})
                if name in seen or who in seen.values():
                    same = "the same settings with these keys" if who in seen.values() else "the same name"
                    raise settings.ConfigError(f"--arms: {file} has {same} as another arm")
                seen[name] = who
            count = a.seeds * len(jobs)
            for seed in range(first, first + a.seeds):
                for file, name, keys in jobs:
                    print(f"run {len(folders) + 1} of {count}: {name}, seed {seed}", file=sys.stderr)
                    train(file, [*keys, f"seed={seed}"], out / f"{name}-seed{seed}")
                    folders.append(out / f"{name}-seed{seed}")
        kept = {f: recorded(f) for f in folders if f.is_file()}

        def runs() -> list[tuple[Path, dict]]:
            return [(f / run["folder"] if f in kept else f, run) for f in folders for run in kept.get(f) or [read(f)]]

        where, found = zip(*runs(), strict=True)
        check_alike(found, where)  # what cannot be is named before the tables take their time
        if a.sequences:
            from .table import likelihoods

            for folder in (f for f in folders if f not in kept):
                print(f"{folder}: likelihoods", file=sys.stderr)
                likelihoods(folder, sequences=a.sequences, draws=a.draws)
        result = compare(arms_of([run for _, run in runs()]), out)
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except settings.NonFinite as e:
        print(f"error: {folder}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    for claim in result["claims"]:
        print(f"{claim['verdict']:26} {claim['claim']} ({claim['reason']})")
    print(f"report {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
