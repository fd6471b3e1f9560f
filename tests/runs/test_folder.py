"""The run folder: who may use it, and what a start resumes."""

import json
import signal
from pathlib import Path

import pytest

from tdlm_fast import evaluate, train
from tdlm_fast.runs import files
from tests.running import ENDLESS, HANG_S, TINY, begun, metrics, state_of

pytestmark = pytest.mark.slow


def test_one_process_a_folder_and_a_stop_in_the_first_evaluation(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    with begun([*tiny, f"eval.samples={ENDLESS}"], "parameters") as process:
        for more in ([], ["--resume"]):
            assert train.main([TINY, *tiny, *more]) == 2
            error = capsys.readouterr().err
            assert f"{folder} is in use by process {process.pid} on" in error and "run.dir=OTHER" in error
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 130 and error == "interrupted; no checkpoint was saved yet\n"
    assert not (folder / "lock").exists()
    assert train.main([TINY, *tiny]) == 2 and "holds a run already" in capsys.readouterr().err
    (folder / "samples.txt").write_text("--- step 0\nof the run before\n")
    assert train.main([TINY, *tiny, "train.max_steps=1", "--resume"]) == 0
    assert "of the run before" not in (folder / "samples.txt").read_text()
    assert "of the run before" in (folder / "earlier-1" / "samples.txt").read_text()
    assert "earlier files are now in" in capsys.readouterr().err
    assert [e["step"] for e in metrics(folder)] == [0, 1, 1]


@pytest.mark.parametrize("where", ["/proc/nope", "/dev/null/x", "file"])
def test_a_folder_that_cannot_be_is_named(tiny, tmp_path, capsys, where):
    (tmp_path / "file").write_text("kept")
    assert train.main([TINY, *tiny, f"run.dir={tmp_path / where}"]) == 2
    assert f"error: run.dir: {tmp_path / where} cannot be used (" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


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


def test_a_run_stays_on_the_text_it_began_with(trained, tiny, tmp_path, monkeypatch, capsys):
    """Whether the Hub can be reached may change between the commands on a run."""
    from tdlm_fast.data import sources

    words = "".join(f"line {i} of a text that is here\n" for i in range(600))
    hub, down = {s: words.replace("here", "there") for s in sources.SPLITS}, OSError("no network")

    def reach(result):
        def _hub(name):
            if result is down:
                raise down
            return result

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
        resumed = train.main([TINY, *args, f"run.dir={folder}", "--resume"])
        scored = evaluate.main([str(folder), "--device", "cpu"])
        out, err = capsys.readouterr()
        if first is down:
            assert resumed == scored == 0 and "sotu test, diffusion" in out
            assert json.loads((folder / "summary.json").read_text())["corpus"] == "sotu"
        else:
            assert resumed == scored == 2 and err.count("cannot be reached") == err.count("began on wikitext-2") == 2


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
    copy.write_bytes(Path(next(a for a in args if a.startswith("data.path=")).partition("=")[2]).read_bytes())
    free = [f"data.path={copy}", "eval.every=1", "train.log_every=3", "train.save_every=4", "train.capture=off"]
    assert train.main([TINY, *args, *free, "--resume"]) == 0
    copy.write_text(copy.read_text()[:-100])
    (folder / "summary.json").unlink()
    capsys.readouterr()
    assert train.main([TINY, *args, *free, "--resume"]) == 2
    assert "the text is not what" in capsys.readouterr().err
