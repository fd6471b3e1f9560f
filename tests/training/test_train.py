"""The verb `train`: what it prints, and its one line where it cannot train."""

import errno
import os
import subprocess
import sys

import pytest

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.objective import OBJECTIVES
from tdlm_fast.runs.files import LAST
from tdlm_fast.runs.metrics import entries
from tests.running import TINY, state_of


def test_training_prints_a_line_before_it_loads_pytorch(tmp_path):
    """The line must come before torch is imported: importing it may take seconds."""
    code = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print('torch', flush=True); sys.exit(7)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from tdlm_fast.train import main\n"
        f"main(['configs/tiny.yaml', 'run.dir={tmp_path / 'run'}'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 7
    assert ended.stdout.splitlines() == [f"configs/tiny.yaml: diffusion, into {tmp_path / 'run'}", "torch"]


@pytest.mark.parametrize("twin", [[], ["objective=autoregressive", "loss_weight=elbo"]], ids=OBJECTIVES)
def test_the_published_settings_train_both_objectives(twin, tiny, tmp_path):
    assert train.main(["configs/published.yaml", *tiny, "train.max_steps=12", "eval.every=6", *twin]) == 0
    config = settings.load(tmp_path / "run" / "config.yaml")
    weight = "elbo" if twin else "published"
    assert dict(layout="published", sampling="exact", eps=1e-5, precision="fp32", weight=weight) == dict(
        layout=config.data.layout, sampling=config.noise.sampling, eps=config.model.norm_eps,
        precision=config.precision, weight=config.loss_weight,
    )  # fmt: skip
    lines = entries(tmp_path / "run" / "metrics.jsonl")[0]
    losses = [e["loss"] for e in lines if "loss" in e]
    assert len(losses) == 12 and all(0 < loss < 6 for loss in losses)
    bounds = [e["valid"]["nats_per_token"] for e in lines if "valid" in e]
    assert bounds[-1] < bounds[0] - 0.05  # it learns


def test_an_early_loss_that_is_no_number_claims_no_checkpoint(tiny, capsys):
    args = [*tiny, "optim.lr=1e18", "optim.clip=0", "optim.min_lr=0"]
    assert train.main([TINY, *args]) == 1
    error = capsys.readouterr().err
    assert "not finite at step" in error and "no checkpoint was saved yet" in error and "intact" not in error


def test_a_finished_run_prints_its_scores_its_folder_and_the_next_command(trained, capsys):
    folder, args = trained
    capsys.readouterr()
    assert train.main([TINY, *args, "--resume"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{TINY}:", "valid", "test", "best", "speed", "run", "sample"]
    assert lines[3] == "best   these are of the weights of step 2, of 2 trained" and lines[5] == f"run    {folder}"
    assert f"-m tdlm_fast.sample {folder} --prompt 'The ' --tokens 32" in lines[6]
    assert "finished already" in err


def test_a_run_folder_that_cannot_be_made_is_one_line(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main([TINY, *tiny, f"run.dir={tmp_path / 'file' / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: run.dir: {tmp_path / 'file'}") and error.endswith("give another run.dir")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("where", ["a full disk", "a closed pipe", "closed"])
def test_training_ends_well_where_stderr_cannot_be_written(tiny, tmp_path, where):
    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *tiny]
    if where == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        stderr = {"a full disk": full, "a closed pipe": writer, "closed": None}[where]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    os.close(writer)
    assert ended.returncode == 0 and f"run    {tmp_path / 'run'}" in ended.stdout
    assert state_of(tmp_path / "run" / LAST)["step"] == 30
    # an error has its exit status, too
    command += ["optim.lr=7"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_stdout_is_not_blamed_on_the_folder_of_the_run(tiny, tmp_path):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "tdlm_fast.train", TINY, *tiny]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.stderr == "error: the output cannot be written: No space left on device; write it elsewhere\n"
    assert ended.returncode == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_is_one_line_with_what_is_left(tiny, tmp_path, saved, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "last.safetensors")

    monkeypatch.setattr(train, "train", full)
    if saved:
        (tmp_path / "run" / LAST).parent.mkdir(parents=True)
        (tmp_path / "run" / LAST).write_text("")
    assert train.main([TINY, *tiny]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: last.safetensors: No space left on device; ") and error.count("\n") == 1
    assert ("the last checkpoint is intact; to resume: " in error) == saved
    assert ("no checkpoint was saved yet" in error) != saved


def test_the_command_of_the_error_about_a_run_folder_trains_that_run_further(trained, capsys):
    folder, args = trained
    capsys.readouterr()
    assert train.main([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    words = err.partition("; give ")[2].partition(" to train")[0].replace(",", "").removeprefix("with ").split()
    assert train.main([*(w for w in words if w != "with"), "train.max_steps=2"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == f"run    {folder}"
