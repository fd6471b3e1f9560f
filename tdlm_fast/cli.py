"""The parts every verb shares, without torch: how it starts and ends, and commands to paste."""

import argparse
import contextlib
import errno
import functools
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from .config import ConfigError, NonFinite, describe, expanded

FAULT = 70  # exit code of a fault of the program (EX_SOFTWARE): 1 means that a check or a loss failed
LOWER = "eval.batch_size in the config.yaml of the run"  # what takes memory where a verb names nothing else


class Lenient:
    """A stream whose failing writes lose their text and nothing else: a full disk, a closed pipe or terminal.

    Progress is written to stderr, and hours of training must not end because it cannot be shown.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()


class Closed(io.TextIOWrapper):
    """In place of a stream that was closed by the process that started this one; loses what is written."""

    def __init__(self):
        super().__init__(open(os.devnull, "wb"))


def verb(main) -> int:
    """Run main() and return its exit code, also where the output cannot show a character, is full or is closed.

    The process is to end with it: from here on Ctrl-C is ignored, as Python would print a traceback while it ends.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Closed())
    sys.stderr = Lenient(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return code
    except KeyboardInterrupt:  # while the reader of a pipe was waited for
        code = 130
    except BrokenPipeError:
        code = 141  # as a shell reports SIGPIPE
    except Exception as e:
        if not (isinstance(e, OSError) and e.filename is None and e.errno == errno.ENOSPC):
            traceback.print_exc()
            return FAULT
        print(f"error: the output cannot be written: {e.strerror}; write it elsewhere", file=sys.stderr)
        code = 2
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again as it ends
    return code


def out_of_memory(e: BaseException) -> str:
    """Return what failed where e says that the memory of the machine or of a GPU is full, else ""."""
    full = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"  # torch's, without importing it
    if not full and "can't allocate memory" not in str(e):
        return ""
    bytes_ = re.search(r"allocate (\d+) bytes", str(e))
    asked = bytes_ and f"{int(bytes_[1]) / 1e9:,.1f} GB more"
    asked = asked or next(iter(re.findall(r"[Tt]ried to allocate ([\d.]+ \w+)", str(e))), "more")
    return f"the memory is full ({asked} {'were' if bytes_ else 'was'} asked for)"


def mendable(e: BaseException, errors: tuple[type[Exception], ...], lower: str) -> str:
    """Return the line of an error that the user can mend, "" for any other, which is a fault of the program."""
    if isinstance(e, errors) or isinstance(e, ValueError) and str(e).startswith("TDLM_"):
        return str(e)  # the kernels name a wrong variable of the environment as they are imported
    if full := out_of_memory(e):
        return f"{full}; lower {lower}"
    if isinstance(e, OSError) and e.filename is not None:
        return f"{e.filename}: {e.strerror or e}; see its permissions and its disk"
    return ""


def printable(text: str) -> str:
    """Return text as one line: line ends and control characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def exit_codes(kept: str = "", errors: type[ValueError] = ConfigError, lower: str = LOWER, prints: bool = True):
    """Decorate a verb's main: an error ends it with one line on stderr and 2, NonFinite with 1, Ctrl-C with 130.

    errors: those of what was asked for. kept: what Ctrl-C leaves, unless the interrupt brings its own words. lower:
    the options or keys that take memory. prints: its result is what it prints, so a closed stdout is an error.
    """

    def decorate(main):
        @functools.wraps(main)
        def run(argv=None) -> int:
            try:
                if prints and isinstance(sys.stdout, Closed):
                    raise ConfigError("stdout is closed, and the result is only shown there; leave it open")
                return main(argv) or 0
            except KeyboardInterrupt as e:
                line, code = "; ".join(["interrupted", *filter(None, e.args or [kept])]), 130
            except Exception as e:
                line, code = f"error: {mendable(e, (errors, NonFinite), lower)}", 1 if isinstance(e, NonFinite) else 2
                if line == "error: ":
                    raise
            print(printable(line), file=sys.stderr)
            return code

        return run

    return decorate


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of the verbs are; argparse prints its usage before it."""

    def error(self, message: str):
        message = message.replace("config, overrides", "config")  # parse_intermixed_args lists what is optional too
        print(f"error: {printable(message)}; --help shows the usage and all options", file=sys.stderr)
        sys.exit(2)


def several() -> bool:
    """Return whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def verb_parser(verb: str, about: str | None, keys: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a verb; about is its docstring, whose first line --help prints; keys adds the config's.

    Raises ConfigError where torchrun has started several processes of a verb that is not train.
    """
    if verb != "train" and several():
        raise ConfigError(f"torchrun starts several processes of train only; run {verb} without it")
    about = (about or "").partition("\n")[0].partition(": `python")[0]
    epilog = f"keys, their defaults and meanings:\n{describe()}" if keys else None
    style = argparse.RawDescriptionHelpFormatter
    return Parser(f"python -m tdlm_fast.{verb}", None, about, epilog, formatter_class=style)


def path(text: str) -> Path:
    """Return the path that an option names, with ~ expanded: the `type` of every such argument."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path, or . for the current folder")
    try:
        return Path(expanded(text))
    except ConfigError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def own_folder(folder: Path, option: str) -> None:
    """Raise ConfigError where a folder to write into is a root or a home folder, where its files would be lost."""
    full = Path(os.path.realpath(folder))  # Path.resolve raises where a link leads to itself
    home = os.path.expanduser("~")  # which stays ~ where there is no home, and may be empty
    if full == Path(full.anchor) or (os.path.isabs(home) and full == Path(os.path.realpath(home))):
        raise ConfigError(f"{option} is {folder}; give a folder of its own, such as {folder / 'runs' / 'NAME'}")


def not_taken(folder: Path, option: str) -> None:
    """Raise ConfigError where a folder to write into is a file, or lies in one, or holds a run."""
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{option} {folder} is the folder of a run; give a folder of its own")
    if file := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        raise ConfigError(f"{option} {folder}: {file} is a file; give a folder")


def command(verb: str, *words) -> str:
    """Return `PYTHON -m tdlm_fast.VERB WORDS` ready to paste here: this interpreter, words quoted where needed."""
    python = sys.executable
    found = shutil.which("python")
    if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(python) and os.path.samefile(found, python):
        python = "python"
    elif Path(python).is_relative_to(Path.cwd()):
        python = str(Path(python).relative_to(Path.cwd()))
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    given = (f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)  # no option
    return join([python, "-m", f"tdlm_fast.{verb}", *given])


def announce(text: str) -> None:
    """Print a line on a terminal's stderr before slow imports, so that a verb is seen to have started."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
