"""The run folder: who may use it, and what a start resumes."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tdlm_fast import config as settings
from tdlm_fast import evaluate, train
from tdlm_fast.comparison import records
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


def test_a_finished_run_is_returned_for_its_own_text_and_evaluation_only(trained, corpus, tmp_path, capsys):
    folder, args = trained
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_bytes(corpus.read_bytes())
    other.write_text(corpus.read_text().replace("mill", "hill"))
    now = f"data.path was '{corpus}', now"
    for keys, message in (
        ([f"data.path={other}"], f"the text is not what {folder} was trained on ({now} '{other}')"),
        ([f"data.path={tmp_path / 'absent'}"], f"data.path: {tmp_path / 'absent'} does not exist"),
        (["data.path=", "data.corpus=sotu"], f"data.corpus was 'wikitext-2', now 'sotu'; {now} ''"),
        (["eval.max_samples=8"], "other settings of the evaluation: eval.max_samples was 4, now 8; resume with those"),
        (["eval.every=1", "eval.target_stderr=0.5"], "eval.every was 10, now 1; eval.target_stderr was 0.01, now 0.5"),
        (["eval.early=1"], "eval.early was '', now '1'"),
    ):
        capsys.readouterr()
        assert train.main([TINY, *args, *keys, "--resume"]) == 2
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1 and message in err and len(out.splitlines()) == 1
    for keys in ([f"data.path={same}"], ["eval.batch_size=3"], ["train.log_every=9", f"data.cache={tmp_path / 'c'}"]):
        assert train.main([TINY, *args, *keys, "--resume"]) == 0
        assert "finished already" in capsys.readouterr().err
    args = [*args, f"data.path={same}"]
    same.write_text(same.read_text() + "!")
    assert train.main([TINY, *args, "--resume"]) == 2 and "the text is not what" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
    same.write_bytes(corpus.read_bytes())
    (folder / "summary.json").unlink()  # as the error about the evaluation says
    assert train.main([TINY, *args, "eval.max_samples=8", "eval.target_stderr=0", "--resume"]) == 0
    assert json.loads((folder / "summary.json").read_text())["test"]["samples"] == 8


def test_a_text_that_was_rewritten_in_its_place_is_another_text(tiny, corpus, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    args = [*tiny, f"data.path={text}", "train.max_steps=2", "eval.text=0"]
    assert train.main([TINY, *args]) == 0
    text.write_text(text.read_text().replace("river", "brook"))
    assert train.main([TINY, *args, "--resume"]) == 2
    folder = tmp_path / "run"
    assert f"the text is not what {folder} was trained on (its files have changed)" in capsys.readouterr().err
    text.unlink()
    assert train.main([TINY, *args, "--resume"]) == 2 and f"{text} does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_the_packaged_text_is_not_returned_for_a_corpus_of_the_hub(
    tiny, tmp_path, finished, monkeypatch, capsys
):
    from tdlm_fast.data import sources

    words = "".join(f"line {i} of a text that is here\n" for i in range(600))
    monkeypatch.setattr(sources, "_sotu", lambda: {s: words for s in sources.SPLITS})
    monkeypatch.setattr(sources, "_hub", lambda name: {s: words.replace("here", "there") for s in sources.SPLITS})
    args = [*tiny, "data.path=", "train.max_steps=2", "eval.text=0"]
    assert train.main([TINY, *args, "data.corpus=sotu"]) == 0
    if not finished:
        (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert train.main([TINY, *args, "data.corpus=wikitext-2", "--resume"]) == 2
    assert "(data.corpus was 'sotu', now 'wikitext-2')" in capsys.readouterr().err
    monkeypatch.setattr(sources, "_hub", None)  # a finished run needs no network
    assert train.main([TINY, *args, "data.corpus=sotu", "--resume"]) == 0


def test_a_summary_of_another_run_is_refused(trained, tmp_path, capsys):
    folder, args = trained
    for key, says in (("seed=7", "another seed"), ("optim.lr=1e-3", "other settings")):
        other = tmp_path / "other"
        assert train.main([TINY, *args, key, f"run.dir={other}"]) == 0
        own = (folder / "summary.json").read_bytes()
        shutil.copy(other / "summary.json", folder / "summary.json")
        capsys.readouterr()
        assert train.main([TINY, *args, "--resume"]) == 2
        assert f"summary.json belongs to another run ({says}); restore" in capsys.readouterr().err
        with pytest.raises(settings.ConfigError, match="belongs to another run"):
            records.read(folder)
        (folder / "summary.json").write_bytes(own)
        shutil.rmtree(other)
    assert train.main([TINY, *args, "--resume"]) == 0
