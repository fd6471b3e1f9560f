"""A run folder: which process may write to it, and whether a start resumes what it holds.

runs/NAME/   config.yaml  metrics.jsonl  checkpoints/{last,best}.safetensors  samples.txt  summary.json
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import sys
from pathlib import Path

from .. import config as settings
from .files import LAST
from .metrics import as_written, finished

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


LOCKED_BYTE = 1 << 30
MADE = ("checkpoints", "metrics.jsonl", "samples.txt", "summary.json", "likelihoods.json", "tasks.json", "tasks")
MADE += ("tokenizer.json",)
WRITTEN = (
    r"(config\.yaml|tokenizer\.json|metrics\.jsonl|samples\.txt|summary\.json|[\w-]+\.safetensors)"  # by training only
)
# Keys that decide no loss, so a run resumes with other values. The text is identified by its hash, wherever it lies.
FREE = ("run.", "eval.", "device", "train.log_every", "train.save_every", "train.keep_at", "train.capture")
FREE += ("data.cache", "data.if_unreachable", "data.path", "data.corpus", "train.branch_from", "model.size")


def folder_of(config, path: str) -> Path:
    """Return the run folder of a config that was read from `path`."""
    return Path(config.run.dir or f"runs/{Path(path).stem}-{config.objective}-seed{config.seed}")


def checkpoint_of(folder: Path, which: str | None) -> str:
    """Return `which`, or if it is None "best" of a finished run and "last" of a stopped one.

    The best checkpoint of a stopped run may be from before any training.
    """
    return which or ("best" if finished(folder) or not (folder / LAST).is_file() else "last")


@contextlib.contextmanager
def locked(folder: Path):
    """Make the folder and keep every other process out of it while inside. Raises ConfigError where that fails.

    The operating system holds the lock (flock), so it ends with its process in any case. The file names the holder.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+")
            _take(file, path)
            with contextlib.suppress(FileNotFoundError):
                if os.name == "nt" or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()  # its holder removed it while we took it
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as e:
        raise settings.ConfigError(f"run.dir: {folder} cannot be used ({e.strerror}); give another run.dir") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        file.close()
        with contextlib.suppress(OSError):  # it stays where it holds something
            folder.rmdir()


def hold(file) -> None:
    """Lock an open file, until it is closed or its process ends. Raises BlockingIOError where another one holds it.

    Windows keeps others from reading what is locked, so there it is a byte far behind the holder's name.
    """
    if sys.platform == "win32":
        os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as e:  # EACCES: it is locked
            raise BlockingIOError(*e.args) from None
        finally:
            os.lseek(file.fileno(), 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def in_use(folder: Path) -> bool:
    """Return whether a process has locked the folder."""
    try:
        with open(folder / "lock", "r+") as file:
            hold(file)
            return False
    except BlockingIOError:
        return True
    except OSError:  # there is no lock
        return False


def _take(file, path: Path) -> None:
    try:
        hold(file)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise settings.ConfigError(f"{path.parent} is in use by {holder}; run.dir=OTHER starts another run") from None
    except OSError as e:  # a file system without locks
        print(f"{path.parent} cannot be locked ({e.strerror}): start nothing else in it", file=sys.stderr)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a process that was killed had begun to write beside those of its run.

    Only the holder of the lock writes these. safetensors writes beside its file too, under a name of its own.
    """
    for file in [p for sub in (folder, folder / LAST.parent) if sub.is_dir() for p in sub.iterdir()]:
        own = re.fullmatch(rf"{WRITTEN}\.\d+\.tmp", file.name)
        if own or file.parent != folder and re.fullmatch(r"\.tmp\w{6}", file.name):
            with contextlib.suppress(OSError):
                file.unlink()


def resumes(config, folder: Path, resume: bool) -> bool:
    """Return whether this start resumes what the folder holds: a finished run or a checkpoint.

    If there is neither, files of an earlier start move to a folder earlier-N inside. Raises ConfigError where the
    folder holds a run of other settings, or holds a run and `resume` is False.
    """
    has_config, has_last = (folder / "config.yaml").is_file(), (folder / LAST).is_file()
    if not resume and (has_config or has_last):
        raise settings.ConfigError(f"{folder} holds a run already: --resume continues it, run.dir=OTHER starts another")
    if not has_last and not (has_config and finished(folder, remake=True)):
        left = [name for name in MADE if has_config and (folder / name).exists()]
        earlier = next(p for n in itertools.count(1) if not (p := folder / f"earlier-{n}").exists())
        if left:
            earlier.mkdir()
        for name in left:
            os.replace(folder / name, earlier / name)
        moved = f"; earlier files are now in {earlier}" if left else ""
        if resume:
            print(f"nothing to resume in {folder}: starting from the beginning{moved}", file=sys.stderr)
        return False
    other = "or start another run with run.dir=OTHER"
    if not has_config:
        raise settings.ConfigError(f"{folder} holds checkpoints but no config.yaml; restore that file, {other}")
    if changed := changes(config, folder, lambda key: not key.startswith(FREE)):
        held = f"--resume with other settings than {folder / 'config.yaml'} holds: {changed}"
        raise settings.ConfigError(f"{held}; resume with those, {other}")
    return True


def other_source(config, folder: Path) -> str:
    """Return where config takes its text from another source than the folder's: "data.path was X, now Y", or ""."""
    return changes(config, folder, lambda key: key in ("data.path", "data.corpus"))


def other_text(config, folder: Path) -> settings.ConfigError:
    """Return the error of a run that is resumed with another text."""
    text = f"the text is not what {folder} was trained on ({other_source(config, folder) or 'its files have changed'})"
    return settings.ConfigError(f"{text}; restore it, or start another run with run.dir=OTHER")


def check_finished(config, folder: Path, summary: dict) -> None:
    """Raise ConfigError where a finished run is not the one that config asks for, or its files were changed.

    `resumes` has compared the settings other than those of the evaluation. The text of a path is read, as its files may
    have changed. A corpus is known by its name, so a finished run needs no network.
    """
    check_summary(config, folder, summary)
    if changed := changes(config, folder, lambda key: key.startswith("eval.") and key != "eval.batch_size"):
        fix = f"resume with those, remove {folder / 'summary.json'} to repeat the final evaluation"
        fix += ", or start another run with run.dir=OTHER"
        held = f"{folder} is finished, and its config.yaml holds other settings of the evaluation"
        raise settings.ConfigError(f"{held}: {changed}; {fix}")
    source_changed = other_source(config, folder)
    if config.data.path or source_changed:
        from ..data.sources import text_hash, texts

        parts = texts(config.data, None if source_changed else summary.get("corpus"))[2]
        if summary.get("corpus_hash") not in (None, text_hash(parts)):  # the first runs recorded none
            raise other_text(config, folder)
    for file in (folder / "metrics.jsonl", folder / "samples.txt"):
        if file.exists() and not as_written(folder, summary, file.name):
            fix = "restore it, or move it away; the run is finished, and summary.json is good"
            raise settings.ConfigError(f"{file} was changed after the run had written it; {fix}")
    if config.data.learned_tokens:
        from .vocabulary import FILE, tokenizer_of

        if tokenizer_of(folder, config).hash != summary.get("tokenizer_hash"):
            raise settings.ConfigError(f"{folder / FILE} holds other tokens than the run learned; restore a copy of it")


def check_summary(config, folder: Path, summary: dict) -> None:
    """Raise ConfigError where the summary is of a run of another seed or other settings than config."""
    owner = owner_of(config)
    if any(summary.get(k, v) != v for k, v in owner.items()):  # versions up to 0.2.0 recorded none
        differs = "another seed" if summary.get("seed") != owner["seed"] else "other settings"
        fix = "restore this run's own, or remove it, and --resume makes it again"
        raise settings.ConfigError(f"{folder / 'summary.json'} belongs to another run ({differs}); {fix}")


def owner_of(config) -> dict:
    """Return what a checkpoint records of its run: the seed, and a hash of the settings that decide its weights.

    Defaults are left out, so that a key that a later version adds does not make a run foreign to its own checkpoints.
    """
    deciding = {k: f.default for k, f in settings.fields().items() if not k.startswith(FREE)}
    changed = {k: v for k, v in settings.flatten(config).items() if k in deciding and v != deciding[k]}
    if changed.get("precision") == "bf16":  # the default up to 0.2.0
        del changed["precision"]
    text = json.dumps(changed, sort_keys=True)
    return {"seed": config.seed, "settings_hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def path_from(config, folder: Path) -> dict:
    """Return {"path_from_run": …} of a relative data.path, by which the run finds its text from any current folder.

    It is relative to the run folder, so that no checkpoint names a folder of the machine; {} for other sources.
    """
    if not config.data.path or Path(config.data.path).is_absolute():
        return {}
    try:
        return {
            "path_from_run": Path(
                os.path.relpath(os.path.realpath(config.data.path), os.path.realpath(folder))
            ).as_posix()
        }
    except ValueError:  # Windows: on another drive
        return {}


def changes(config, folder: Path, counts) -> str:
    """Return where config differs from the folder's in keys that satisfy `counts`: "KEY was X, now Y; …"."""
    before, now = settings.flatten(settings.load(folder / "config.yaml")), settings.flatten(config)
    return "; ".join(f"{k} was {before[k]!r}, now {v!r}" for k, v in now.items() if counts(k) and before[k] != v)
