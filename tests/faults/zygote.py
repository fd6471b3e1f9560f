"""A process that has loaded PyTorch once and forks a run of `tdlm_fast` for each request: a run costs no import.

Requests and answers are lines of JSON. {"run": [module, arguments], "log": FIFO, …} forks a process whose output goes
there, and answers its id; {"wait": id} answers its status as `subprocess` has it. A child is a process of its own
in all else: default signals, its own session, an exit of its own.

    "kill_at": [n, null]        SIGKILL at the n-th moment within the writing of checkpoints, three of each
    "kill_at": [n, bytes]       the kernel ends it (SIGXFSZ) when it has written so many bytes of the n-th checkpoint
    "full": [name, n, bytes]    from the n-th opening to write of a file whose name begins so, it grows by no more than
                                these bytes, and no other file by more (RLIMIT_FSIZE)
    "powerless": true           without root's right to read what its mode forbids
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys


def end_within_a_checkpoint(n: int, size: int | None):
    """Have the kernel end this process at its n-th event on the unfinished file of a checkpoint.

    With a size that is the n-th beginning of one, else an n-th moment that is before its mode is set, before it is
    flushed or before it is renamed.
    """
    seen, beginning = 0, True

    def hook(event, args):
        nonlocal seen, beginning
        if event not in ("open", "os.chmod", "os.rename") or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if not (path.endswith(".tmp") and "safetensors" in path and "checkpoints" in path):
            return
        begins, beginning = beginning, event == "os.rename"
        if begins != (size is not None):
            return
        seen += 1
        if seen == n and size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif seen == n:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    sys.addaudithook(hook)


def fill_the_disk(name: str, n: int, size: int):
    """Let a file grow by `size` from the n-th time that one whose name begins with `name` is opened to be written."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event == "open" and isinstance(args[0], str | os.PathLike) and args[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.fspath(args[0])
            if os.path.basename(path).startswith(name):
                seen += 1
                if seen == n:
                    limit = size + (os.path.getsize(path) if os.path.exists(path) else 0)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    sys.addaudithook(hook)


def drop_capabilities():
    """Give up all capabilities of root for good, among them the one to read and write any file."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, os.strerror(ctypes.get_errno())


def child(request: dict) -> int:
    """Run what the request names in this process; return its exit code."""
    os.setsid()
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 64)
    if request.get("powerless") and not os.geteuid():
        drop_capabilities()
    if "kill_at" in request:
        end_within_a_checkpoint(*request["kill_at"])
    if "full" in request:
        fill_the_disk(*request["full"])
    from tdlm_fast.cli import verb

    module, arguments = request["run"]
    run = importlib.import_module(f"tdlm_fast.{module}").main
    code = verb(lambda: run(arguments))
    sys.stderr.flush()
    return code


def serve() -> int:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            answer = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        else:
            answer = os.fork()
            if not answer:
                os._exit(child(request))  # taking PyTorch down would take four times as long as the run
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # or the first collection of each child would copy all of PyTorch
    sys.exit(serve())
