"""The run folder: what stops a run, what is then left of it, and what is said when something there is wrong."""

import contextlib
import itertools
import json
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tdlm_fast import config as settings
from tdlm_fast import doctor, evaluate, sample, train
from tdlm_fast.comparison import records
from tdlm_fast.runs import checkpoint, files, load
from tdlm_fast.runs import metrics as run_metrics
from tdlm_fast.training import logger, trainer

TINY = "configs/tiny.yaml"
ENDLESS = 10**7  # draws: an evaluation that does not end


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def begun(args, until):
    """A process of train that has just said `until`."""
    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        said = list(itertools.takewhile(lambda line: until not in line, process.stderr))
        assert process.poll() is None, "".join(said)
        yield process
    finally:
        process.kill()
        process.wait()


def state_of(file):
    with safe_open(file, "pt") as f:
        return json.loads(f.metadata()["state"])


def rewrite(file, state=None, drop=(), **about):
    """The checkpoint with other metadata and without some tensors, as an older or a foreign program may leave it."""
    with safe_open(file, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys() if not k.startswith(tuple(drop))}
        about = {"state": f.metadata()["state"] if state is None else json.dumps(state)} | about
    save_file(tensors, file, about)


@pytest.fixture
def trained(tiny, tmp_path):
    """A finished run of two steps: its folder and its keys."""
    args = [*tiny, "train.max_steps=2", "eval.text=0"]
    assert train.main([TINY, *args]) == 0
    return tmp_path / "run", args


# ---- signals -----------------------------------------------------------------------------------------------------


def test_a_stop_is_saved_before_it_is_scored_and_leaves_no_trace_in_the_run(tiny, tmp_path, monkeypatch, capfd):
    folder, real, scores = tmp_path / "run", logger.Log.progress, trainer.both

    def progress(self, step, entry):  # when the loop has decided already that it does not save at this step
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, step, entry)

    evaluated = []

    def both(*args, **kw):
        evaluated.append(state_of(folder / files.LAST)["step"] if (folder / files.LAST).exists() else None)
        return scores(*args, **kw)

    monkeypatch.setattr(logger.Log, "progress", progress)
    monkeypatch.setattr(trainer, "both", both)
    args = [*tiny, "eval.every=100", "eval.text=0"]
    assert train.main([TINY, *args]) == 130
    said = capfd.readouterr()
    assert "stopping after this step" in said.err and "stopped at step 7 of 30; saved" in said.err
    assert "weights of step 7" in said.out and "stopped early; to resume" in said.out
    last, best = (state_of(folder / name) for name in (files.LAST, files.BEST))
    # The score of a stop is no evaluation of the run: which weights are the best must not hang on when it came.
    assert evaluated == [None] and last["step"] == 7 and best["step"] == 0 and last["best"] == best["best"]
    assert json.loads((folder / "summary.json").read_text())["best_step"] == 7
    monkeypatch.undo()
    assert load.load_run(folder, device="cpu")[3]["step"] == 7
    assert train.main([TINY, *args, "--resume"]) == 0
    assert train.main([TINY, *args, f"run.dir={tmp_path / 'whole'}"]) == 0
    a, b = ({e["step"]: e["loss"] for e in metrics(f) if "loss" in e} for f in (folder, tmp_path / "whole"))
    assert a == b and len(a) == 30
    assert [e["step"] for e in metrics(folder) if "valid" in e] == [0, 30]
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, tmp_path / "whole"))
    assert all(a[key] == b[key] for key in ("valid", "test", "best_step", "tokens"))


def test_one_process_a_folder_and_a_stop_in_the_first_evaluation(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    with begun([*tiny, f"eval.samples={ENDLESS}"], "parameters") as process:
        for more in ([], ["--resume"]):
            assert train.main([TINY, *tiny, *more]) == 2
            error = capsys.readouterr().err
            assert f"{folder} is in use by process {process.pid} on" in error and "run.dir=OTHER" in error
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error == "interrupted; no checkpoint was saved yet\n"
    assert not (folder / "lock").exists()
    assert train.main([TINY, *tiny]) == 2 and "holds a run already" in capsys.readouterr().err
    (folder / "samples.txt").write_text("--- step 0\nof the run before\n")
    assert train.main([TINY, *tiny, "train.max_steps=1", "--resume"]) == 0
    assert "of the run before" not in (folder / "samples.txt").read_text()
    assert "of the run before" in (folder / "earlier-1" / "samples.txt").read_text()
    assert "earlier files are now in" in capsys.readouterr().err
    assert [e["step"] for e in metrics(folder)] == [0, 1, 1]


def test_a_stop_in_the_final_evaluation_loses_nothing(tiny, tmp_path, capsys):
    folder, args = tmp_path / "a run", [*tiny, "train.max_steps=2", "eval.text=0", f"run.dir={tmp_path / 'a run'}"]
    with begun([*args, f"eval.max_samples={ENDLESS}", "eval.target_stderr=0"], "step 2  valid") as process:
        while checkpoint.peek(folder / files.LAST).get("evaluated") != 2:  # the final evaluation begins after that
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and len(out.splitlines()) == 1
    assert "interrupted; the last checkpoint is intact; to resume: " in error
    goes_on = shlex.split(error.partition("to resume: ")[2])
    assert shutil.which(goes_on[0]) and goes_on[1:3] == ["-m", "tdlm_fast.train"] and goes_on[-1] == "--resume"
    before = metrics(folder)
    assert train.main([*goes_on[3:], "eval.max_samples=4"]) == 0 and metrics(folder) == before
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sample "))
    words = subprocess.run(printed.removeprefix("sample "), shell=True, capture_output=True, text=True)
    assert words.returncode == 0 and words.stdout.startswith("The ")  # as printed, outside an activated environment


def test_a_comparison_killed_outright_takes_its_run_with_it(tiny, tmp_path):
    if sys.platform != "linux":
        pytest.skip("the death of a parent is signalled on Linux alone")
    args = [a for a in tiny if not a.startswith("run.dir=")]
    command = [sys.executable, "-m", "tdlm_fast.compare", TINY, *args, f"eval.samples={ENDLESS}", "--out", tmp_path]
    process, folder = subprocess.Popen(command, stderr=subprocess.DEVNULL), tmp_path / "diffusion-seed42"
    lock, deadline = folder / "lock", time.monotonic() + 60
    while not (folder / "config.yaml").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    trainer = int(lock.read_text().split()[1])
    process.kill()
    process.wait()
    try:
        while lock.exists():  # the run ends in its own way, and so removes its lock
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(trainer, signal.SIGKILL)


# ---- what is damaged, or cannot be written -----------------------------------------------------------------------


def test_a_flipped_bit_is_seen(trained, capsys):
    folder, args = trained
    for name in (files.BEST, files.LAST):
        file = folder / name
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[-4321] ^= 0x40
        for damaged in (bytes(changed), whole.replace(rb"\"step\": 2", rb"\"step\": 3")):
            assert damaged != whole
            file.write_bytes(damaged)
            which = ["--checkpoint", file.stem]
            assert evaluate.main([str(folder), *which, "--device", "cpu"]) == 2
            error = capsys.readouterr().err
            assert f"{file} is damaged (its contents do not match its checksum)" in error
        file.write_bytes(whole)
        rewrite(file)  # without a checksum, as older ones
        assert evaluate.main([str(folder), *which, "--device", "cpu", "--max-samples", "2"]) == 0


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(drop=("exp_avg.",)), "holds no moments of AdamW for"),
        (dict(drop=("exp_avg_sq.", "exp_avg.")), "holds no moments of AdamW for"),
        (dict(state={}), "its state has no step, best, tokens, loss_tokens, seconds, corpus_hash"),
        (dict(state={"step": 2, "best": 1.0}), "its state has no tokens, loss_tokens, seconds, corpus_hash"),
        (dict(state=[]), "its state has no step"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_named(trained, capsys, change, says):
    folder, args = trained
    (folder / "summary.json").unlink()
    rewrite(folder / files.LAST, **change)
    assert train.main([TINY, *args, "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / files.LAST}" in error and says in error and "other checkpoint" not in error


@pytest.mark.parametrize("where", ["/proc/nope", "/dev/null/x", "file"])
def test_a_folder_that_cannot_be_is_named(tiny, tmp_path, capsys, where):
    (tmp_path / "file").write_text("kept")
    assert train.main([TINY, *tiny, f"run.dir={tmp_path / where}"]) == 2
    assert f"error: run.dir: {tmp_path / where} cannot be used (" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_leaves_the_last_checkpoint(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train.main([TINY, *tiny, "train.max_steps=5"]) == 0
    (folder / "summary.json").unlink()

    def limit():  # a file of more than 100 kB fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *tiny, "train.max_steps=5", "--resume"]
    state = state_of(folder / files.LAST) | {"best": None, "evaluated": 0}
    rewrite(folder / files.LAST, state)
    last = (folder / files.LAST).read_bytes()
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "best.safetensors cannot be written (" in ended.stderr and "the one before it is intact" in ended.stderr
    assert (folder / files.LAST).read_bytes() == last and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("text", ["", '{"finished": tr', '{"finished": true}', "[]"])
def test_a_summary_cut_short_is_made_again(trained, text):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(text)
    with pytest.raises(settings.ConfigError, match="summary.json is damaged .*; remove it, and .* makes it again"):
        records.read(folder)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert json.loads((folder / "summary.json").read_text())["test"] == whole["test"]


def test_a_summary_that_lacks_a_key_is_made_again_as_its_error_says(trained):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    for key in run_metrics.REPORTED:
        (folder / "summary.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        says = rf"summary.json is damaged \(no {key}\); remove it, and .*train CONFIG --resume makes it again"
        with pytest.raises(settings.ConfigError, match=says):
            records.read(folder)
    (folder / files.LAST).rename(folder / "kept")
    with pytest.raises(settings.ConfigError, match="damaged .*; restore it: without .*last.safetensors"):
        records.read(folder)
    (folder / "kept").rename(folder / files.LAST)
    (folder / "summary.json").unlink()
    with pytest.raises(settings.ConfigError, match="is not finished: .*train CONFIG --resume ends it"):
        records.read(folder)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert records.read(folder)["summary"]["test"] == whole["test"]


def test_damaged_lines_of_metrics_are_dropped_and_counted(trained, capsys):
    folder, args = trained
    whole = metrics(folder)
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "valid": {"nats_per_token": 5.1}\n\x00\x01 garbage }\n{"step": 2, "val')
    assert len(records.read(folder)["evaluations"]) == 2
    (folder / "summary.json").unlink()
    assert train.main([TINY, *args, "--resume"]) == 0
    assert "metrics.jsonl: 3 damaged lines dropped" in capsys.readouterr().err
    assert metrics(folder) == whole


def test_a_finished_run_stays_whatever_it_lacks(trained, capsys):
    folder, args = trained
    (folder / files.BEST).rename(folder / "kept")
    assert train.main([TINY, *args, "--resume"]) == 0 and "sought again" in capsys.readouterr().err
    assert state_of(folder / files.BEST)["step"] == state_of(folder / "kept")["step"]
    (folder / files.LAST).unlink()
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert train.main([TINY, *args, "--resume"]) == 0 and "finished already" in capsys.readouterr().err
    assert train.main([TINY, *args, "train.max_steps=3", "--resume"]) == 2
    assert "train.max_steps was 2, now 3" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("damage", [b"", None, b"no checkpoint"])
def test_a_best_that_is_gone_is_made_again(trained, capsys, damage):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    (folder / files.BEST).unlink() if damage is None else (folder / files.BEST).write_bytes(damage)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert "the best is sought again from here" in capsys.readouterr().err
    assert json.loads((folder / "summary.json").read_text())["test"] == whole["test"]


def test_a_run_stays_on_the_text_it_began_with(trained, tiny, tmp_path, monkeypatch, capsys):
    """Whether the Hub can be reached may change between the commands on a run."""
    from tdlm_fast.data import sources

    words = "".join(f"line {i} of a text that is here\n" for i in range(600))
    hub, down = {s: words.replace("here", "there") for s in sources.SPLITS}, OSError("no network")

    def reach(found):
        def _hub(name):
            if found is down:
                raise down
            return found

        monkeypatch.setattr(sources, "_hub", _hub)

    monkeypatch.setattr(sources, "_sotu", lambda: {s: words for s in sources.SPLITS})
    args = [a for a in tiny if not a.startswith(("data.path", "run.dir"))]
    args += ["train.max_steps=2", "eval.text=0", "data.corpus=wikitext-2", "data.if_unreachable=sotu"]
    for first, then in ((down, hub), (hub, down)):
        folder = tmp_path / f"run-{first is down}"
        reach(first)
        assert train.main([TINY, *args, f"run.dir={folder}"]) == 0
        summary = json.loads((folder / "summary.json").read_text())
        used = ("sotu", True) if first is down else ("wikitext-2", False)
        assert (summary["corpus"], bool(summary["note"])) == used
        (folder / "summary.json").unlink()
        reach(then)
        capsys.readouterr()
        again = train.main([TINY, *args, f"run.dir={folder}", "--resume"])
        scored = evaluate.main([str(folder), "--device", "cpu"])
        out, err = capsys.readouterr()
        if first is down:
            assert again == scored == 0 and "sotu test, diffusion" in out
            assert json.loads((folder / "summary.json").read_text())["corpus"] == "sotu"
        else:
            assert again == scored == 2 and err.count("cannot be reached") == err.count("began on wikitext-2") == 2


def test_the_end_of_a_run_reaches_whatever_reads_it(trained):
    folder, args = trained
    prompt = ["-m", "tdlm_fast.sample", str(folder), "--tokens", "8", "--device", "cpu"]
    ended = subprocess.run(
        [sys.executable, "-m", "tdlm_fast.evaluate", str(folder), "--device", "cpu"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0 and " ? " in ended.stdout and not ended.stderr
    for closed in (">&-", "2>&-"):
        line = f"{shlex.join([sys.executable, *prompt])} {closed}"
        ended = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert ended.returncode == 0 and "Traceback" not in ended.stderr
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, *prompt], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.endswith("error: the output cannot be written: No space left on device\n")
    ended = subprocess.run(
        f"{shlex.join([sys.executable, *prompt])} | true", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def test_checkpoints_without_their_config_are_named(trained, capsys):
    folder, args = trained
    (folder / "config.yaml").unlink()
    assert train.main([TINY, *args, "--resume"]) == 2
    assert f"{folder} holds checkpoints but no config.yaml" in capsys.readouterr().err
    assert train.main([TINY, *args]) == 2 and "holds a run already" in capsys.readouterr().err


def test_resuming_says_both_values_and_minds_only_what_decides_losses(trained, tmp_path, capsys):
    folder, args = trained
    assert train.main([TINY, *args, "optim.lr=1e-4", "seed=7", "eval.text=1", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "seed was 42, now 7; optim.lr was 0.003, now 0.0001" in error and "run.dir=OTHER" in error
    assert "eval.text" not in error
    (folder / "summary.json").unlink()
    copy = tmp_path / "moved.txt"
    copy.write_bytes(open(next(a for a in args if a.startswith("data.path=")).partition("=")[2], "rb").read())
    free = [f"data.path={copy}", "eval.every=1", "train.log_every=3", "train.save_every=4", "train.capture=off"]
    assert train.main([TINY, *args, *free, "--resume"]) == 0
    copy.write_text(copy.read_text()[:-100])
    (folder / "summary.json").unlink()
    capsys.readouterr()
    assert train.main([TINY, *args, *free, "--resume"]) == 2
    assert "the text is not what" in capsys.readouterr().err


def test_a_device_that_is_not_served_is_named(trained, capsys):
    folder, _ = trained
    for device in ("mps", "xpu", "foo", "cuda:x", "cpu:0", "cuda:²"):
        for verb in (evaluate, sample):
            assert verb.main([str(folder), "--device", device]) == 2
        assert train.main([TINY, f"device={device}"]) == 2
        assert capsys.readouterr().err.count(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N") == 3


@pytest.mark.parametrize("verb", ["doctor", "train configs/tiny.yaml"])
def test_kernels_that_are_not_here_are_named(tiny, verb):
    command = [sys.executable, "-m", *f"tdlm_fast.{verb}".split(), *(tiny if "train" in verb else [])]
    ended = subprocess.run(command, env=os.environ | {"TDLM_CPU_ISA": "foo"}, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: TDLM_CPU_ISA is 'foo'; it must be one of")
    assert len(ended.stderr.splitlines()) == 1


def test_doctor_names_what_serves_each_op(capsys, references):
    assert doctor.main() == 0
    said = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"linear_cross_entropy", "corrupt", "attention", "embedding"} <= said.keys()
    if said["device"].startswith("cpu"):
        assert said["attention"] == "PyTorch's SDPA" and said["corrupt"].startswith("torch references")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("no space")

    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(OSError):
        files.write_beside(tmp_path / "a.json", fails)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


# ---- small things ------------------------------------------------------------------------------------------------


def test_what_is_no_number_is_written_as_null(tmp_path):
    def strict(constant):
        raise AssertionError(constant)

    with logger.Log(tmp_path, settings.Config(), 2, 0, None) as written:
        written.record({"step": 1, "loss": math.nan, "rest": [1.5, {"a": math.inf}]})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=strict)
    assert line == {"step": 1, "loss": None, "rest": [1.5, {"a": None}]}
    files.write_json(tmp_path / "s.json", {"a": (math.nan, 2)})
    assert json.loads((tmp_path / "s.json").read_text(), parse_constant=strict) == {"a": [None, 2]}


@pytest.mark.parametrize("lines, columns, shows", [(24, 80, True), (24, 0, False), (0, 80, False)])
def test_a_terminal_of_no_size_gets_lines(lines, columns, shows):
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    with open(ours, "rb"), open(theirs, "w") as terminal:
        assert logger._shows_a_bar(terminal) == shows


def test_an_early_loss_that_is_no_number_claims_no_checkpoint(tiny, capsys):
    args = [*tiny, "optim.lr=1e18", "optim.clip=0", "optim.min_lr=0"]
    assert train.main([TINY, *args]) == 1
    error = capsys.readouterr().err
    assert "not finite at step" in error and "no checkpoint was saved yet" in error and "intact" not in error


def test_checkpoints_save_and_load_to_the_same_digest(tmp_path, trained):
    folder, _ = trained
    with safe_open(folder / files.LAST, "pt") as f:
        tensors, about = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    assert about["sha256"] == checkpoint.digest(tensors, about["state"])
    swapped = dict(zip(tensors, reversed(tensors.values()), strict=True))
    assert checkpoint.digest(swapped, about["state"]) != about["sha256"] != checkpoint.digest(tensors, "")
