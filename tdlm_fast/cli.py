"""The parts every verb shares, without torch: how it starts and ends, and commands to paste."""

import argparse
import contextlib
import errno
import functools
import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from .config import ConfigError, NonFinite, describe, expanded


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


def verb(main) -> int:
    """Run main() and return its exit code, also where the output cannot show a character, is full or is closed."""
    for name in ("stdout", "stderr"):  # closed by the process that started this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    sys.stderr = Lenient(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        code = 141  # as a shell reports SIGPIPE
    except OSError as e:
        if e.filename is not None or e.errno != errno.ENOSPC:
            raise
        print(f"error: the output cannot be written: {e.strerror}", file=sys.stderr)
        code = 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again as it ends
    return code


def exit_codes(kept: str = "", errors: type[ValueError] = ConfigError):
    """Decorate a verb's main: an error ends it with one line on stderr and 2, NonFinite with 1, Ctrl-C with 130.

    errors: those of what was asked for. kept: what Ctrl-C leaves, unless the interrupt brings its own words.
    """

    def decorate(main):
        @functools.wraps(main)
        def run(argv=None) -> int:
            try:
                return main(argv) or 0
            except (errors, NonFinite) as e:
                line, code = f"error: {e}", 1 if isinstance(e, NonFinite) else 2
            except KeyboardInterrupt as e:
                line, code = "; ".join(["interrupted", *filter(None, e.args or [kept])]), 130
            print(line, file=sys.stderr)
            return code

        return run

    return decorate


def verb_parser(verb: str, about: str | None, keys: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a verb; about is its docstring, whose first line --help prints; keys adds the config's."""
    about = (about or "").partition("\n")[0].partition(": `python")[0]
    epilog = f"keys, their defaults and meanings:\n{describe()}" if keys else None
    style = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m tdlm_fast.{verb}", None, about, epilog, formatter_class=style)


def path(text: str) -> Path:
    """Return the path that an option names, with ~ expanded: the `type` of every such argument."""
    try:
        return Path(expanded(text))
    except ConfigError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def command(verb: str, *words) -> str:
    """Return `PYTHON -m tdlm_fast.VERB WORDS` ready to paste here: this interpreter, words quoted where needed."""
    python = sys.executable
    found = shutil.which("python")
    if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(python) and os.path.samefile(found, python):
        python = "python"
    elif Path(python).is_relative_to(Path.cwd()):
        python = str(Path(python).relative_to(Path.cwd()))
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([python, "-m", f"tdlm_fast.{verb}", *map(str, words)])


def announce(text: str) -> None:
    """Print a line on a terminal's stderr before slow imports, so that a verb is seen to have started."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
