"""A branch of a trunk has the weights of a run that was never cut."""

import pytest

from tdlm_fast import train
from tests.running import TINY, metrics, state_of
from tests.training.weights import same_tensors, tensors_of

pytestmark = pytest.mark.slow
SHORT = ["optim.warmup_steps=4", "eval.text=0", "eval.probe=0", "eval.published=0", "eval.every=5"]


@pytest.fixture
def trunk(tiny, tmp_path):
    """(overrides, folder) of a finished trunk of 20 steps that keeps its checkpoint of step 10."""
    keys = [*tiny, *SHORT, "optim.schedule=constant", "train.max_steps=20", "train.keep_at=10,15"]
    assert train.main([TINY, *keys]) == 0
    return [*tiny, *SHORT, "optim.schedule=wsd", "optim.decay=0.25"], tmp_path / "run"


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_branch_is_the_run_of_its_length_bit_for_bit(tiny, tmp_path, objective):
    keys = [*tiny, *SHORT, f"objective={objective}"]
    assert train.main([TINY, *keys, "optim.schedule=constant", "train.max_steps=20", "train.keep_at=10"]) == 0
    own = [*keys, "optim.schedule=wsd", "optim.decay=0.25", "train.max_steps=14"]
    kept = tmp_path / "run" / "checkpoints" / "step-10.safetensors"
    assert train.main([TINY, *own, f"run.dir={tmp_path / 'branch'}", f"train.branch_from={kept}"]) == 0
    assert train.main([TINY, *own, f"run.dir={tmp_path / 'whole'}"]) == 0
    branch, whole = tmp_path / "branch", tmp_path / "whole"
    assert same_tensors(branch, whole)
    losses = [[(e["step"], e["loss"]) for e in metrics(f) if "loss" in e and e["step"] > 10] for f in (branch, whole)]
    assert losses[0] == losses[1] and losses[0]
    scores = [{e["step"]: e["valid"] for e in metrics(f) if "valid" in e and e["step"] >= 10} for f in (branch, whole)]
    assert scores[0] == scores[1]
    a, b = (state_of(f / "checkpoints" / "last.safetensors") for f in (branch, whole))
    assert a["tokens"] == b["tokens"] and a["loss_tokens"] == b["loss_tokens"]
    assert not same_tensors(branch, tmp_path / "run")


def test_a_finished_branch_needs_its_trunk_no_more(trunk, tmp_path, capsys):
    keys, folder = trunk
    own = [*keys, "train.max_steps=14", f"run.dir={tmp_path / 'branch'}"]
    kept = f"train.branch_from={folder / 'checkpoints' / 'step-10.safetensors'}"
    assert train.main([TINY, *own, kept]) == 0
    before = tensors_of(tmp_path / "branch")
    (tmp_path / "branch" / "summary.json").unlink()
    folder.rename(tmp_path / "elsewhere")
    assert train.main([TINY, *own, kept, "--resume"]) == 0
    after = tensors_of(tmp_path / "branch")
    assert all((before[k] == after[k]).all() for k in before)


@pytest.mark.parametrize(
    "override, says",
    [
        ("optim.lr=1e-3", "has other settings: optim.lr was 0.003, now 0.001"),
        ("seed=1", "has other settings: seed was 42, now 1"),
        ("train.max_steps=12", "is of step 10, too late for 12 steps; give a checkpoint of step 9 or earlier"),
        ("train.branch_from=nowhere", "nowhere is not a checkpoint of a run"),
        ("train.branch_from=RUN/checkpoints/best.safetensors", "best.safetensors holds weights alone, to be evaluated"),
    ],
)
def test_a_trunk_that_cannot_be_branched_from_is_named(trunk, tmp_path, capsys, override, says):
    keys, folder = trunk
    kept = f"train.branch_from={folder / 'checkpoints' / 'step-10.safetensors'}"
    override = override.replace("RUN", str(folder))
    assert train.main([TINY, *keys, "train.max_steps=14", f"run.dir={tmp_path / 'b'}", kept, override]) == 2
    assert says in capsys.readouterr().err


def test_a_branch_that_begins_where_its_rate_falls_can_be_extended(trunk, tmp_path):
    keys, folder = trunk
    kept = f"train.branch_from={folder / 'checkpoints' / 'step-15.safetensors'}"
    own = [*keys, "train.max_steps=20", f"run.dir={tmp_path / 'branch'}", kept]
    assert train.main([TINY, *own]) == 0
    assert train.main([TINY, *own, "--extend", "24"]) == 0
    assert train.main([TINY, *keys, "train.max_steps=24", f"run.dir={tmp_path / 'whole'}"]) == 0
    assert same_tensors(tmp_path / "branch", tmp_path / "whole")


def test_steps_after_the_last_are_not_kept_and_named(tiny, tmp_path, capsys):
    keys = [*tiny, *SHORT, "optim.schedule=constant", "train.max_steps=3", "train.keep_at=0,2,7,9"]
    assert train.main([TINY, *keys]) == 0
    assert "NOTE train.keep_at: the run ends at step 3, so none is kept of step 7, 9" in capsys.readouterr().err
    kept = {f.name for f in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {"step-0.safetensors", "step-2.safetensors"}


def test_a_missing_checkpoint_names_those_that_are_there(trunk, tmp_path, capsys):
    keys, folder = trunk
    missing = f"train.branch_from={folder / 'checkpoints' / 'step-11.safetensors'}"
    assert train.main([TINY, *keys, "train.max_steps=40", f"run.dir={tmp_path / 'b'}", missing]) == 2
    assert "holds step-10.safetensors, step-15.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_no_run_branches_from_a_rate_that_was_falling(tiny, tmp_path, schedule, capsys):
    keys = [*tiny, *SHORT]
    assert train.main([TINY, *keys, f"optim.schedule={schedule}", "train.max_steps=6"]) == 0
    own = ["optim.schedule=wsd", "train.max_steps=20", f"run.dir={tmp_path / 'b'}"]
    assert train.main([TINY, *keys, *own, f"train.branch_from={tmp_path / 'run'}"]) == 2
    assert "at step 6 the learning rate of" in capsys.readouterr().err
