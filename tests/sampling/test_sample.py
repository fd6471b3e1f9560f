"""The command `sample`: its options, what it prints and what it reports."""

import json
import re
import shutil
import types

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast import sample
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.runs import checkpoint, load
from tdlm_fast.sampling import generate, live_view
from tdlm_fast.sampling.autoregressive import window_start
from tdlm_fast.sampling.live_view import visible
from tdlm_fast.sampling.options import METHODS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run folder of each objective with random, far from uniform weights."""
    from tdlm_fast.model import build_model

    folders = {}
    for objective in ("diffusion", "autoregressive"):
        folder = tmp_path_factory.mktemp("runs") / objective
        folder.mkdir()
        keys = [f"objective={objective}", "data.tokenizer=bytes", "model.width=16", "model.heads=2", "model.seq_len=32"]
        config = settings.load("configs/tiny.yaml", keys)
        settings.save(config, folder / "config.yaml")
        model = build_model(config, Bytes())
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 2:
                    p.mul_(25)
        checkpoint.save(folder / "checkpoints" / "best.safetensors", model, None, {"step": 0})
        folders[objective] = folder
    return folders


def call(capsys, *args):
    code = sample.main([*map(str, args), "--device", "cpu"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_texts_of_a_batch_are_those_of_their_seeds_and_their_cost_is_told(runs, objective, capsys):
    args = [runs[objective], "--prompt", "ab", "--tokens", "12", "--json"]
    code, out, err = call(capsys, *args, "--number", "3", "--seed", "4")
    result = json.loads(out)
    assert (code, err) == (0, "") and result["objective"] == objective and result["tokens_per_s"] > 0
    singles = [json.loads(call(capsys, *args, "--seed", 4 + i)[1]) for i in range(3)]
    assert result["texts"] == [a["texts"][0] for a in singles]
    assert all(t.startswith("ab") for t in result["texts"]) and len(set(result["texts"])) == 3
    each = [a["network_evaluations"] for a in singles]
    assert result["network_evaluations_a_text"] == pytest.approx(sum(each) / 3) and max(each) <= 12
    assert result["network_evaluations"] >= max(each)
    if objective == "autoregressive":
        assert each == [12] * 3
    code, out, err = call(capsys, *args[:-1], "--seed", "4")
    assert out == visible(singles[0]["texts"][0]) + "\n"  # the line of figures is on stderr
    assert re.fullmatch(r"12 tokens, \d+ network evaluations \([\d.]+ a text\), [\d,]+ tokens/s\n", err)


def test_every_method_writes_between_prompt_and_suffix(runs, capsys):
    args = [runs["diffusion"], "--prompt", "ab", "--suffix", "yz", "--tokens", "8", "--steps", "4", "--json"]
    texts = set()
    for extra in [["--method", m] for m in METHODS] + [["--remask", "0.3"], ["--method", "random", "--block", "4"]]:
        code, out, err = call(capsys, *args, *extra, "--unmasking", "cosine")
        result = json.loads(out)
        assert code == 0 and result["texts"][0].startswith("ab") and result["texts"][0].endswith("yz")
        assert result["network_evaluations"] == 4 or extra[-1] in ("ancestral", "0.3")
        texts.add(result["texts"][0])
    assert len(texts) >= 6  # they differ


@pytest.mark.parametrize("objective, args, message", [
    ("diffusion", ["--steps", "0"], "--steps is 0; it must be at least 1; leave it out for one step a token"),
    ("diffusion", ["--tokens", "0"], "--tokens is 0; it must be at least 1"),
    ("diffusion", ["--seed", str(2**63)], "with number 1 it must be at most 2^63 - 1"),
    ("diffusion", ["--number", "0"], "--number is 0"), ("diffusion", ["--temperature", "nan"], "--temperature is nan"),
    ("diffusion", ["--temperature", "-1"], "--temperature is -1.0; it must be at least 0 and finite"),
    ("diffusion", ["--temperature", "inf"], "--temperature is inf; it must be at least 0 and finite"),
    ("diffusion", ["--top-p", "2"], "--top-p is 2.0; it must lie"), ("diffusion", ["--top-p", "nan"], "--top-p is nan"),
    ("diffusion", ["--top-p", "0"], "--top-p is 0.0; it must lie"), ("diffusion", ["--top-k", "-1"], "--top-k is -1"),
    ("diffusion", ["--prompt", ""], "--prompt is empty; leave it out"), ("diffusion", ["--suffix", ""], "is empty"),
    ("diffusion", ["--tokens", "30", "--prompt", "abc"], "3 + 30 + 0 tokens; model.seq_len is 32"),
    ("diffusion", ["--tokens", "9", "--block", "4"], "block 4 does not divide the 9 new tokens"),
    ("diffusion", ["--tokens", "8", "--block", "2", "--steps", "6"], "steps 6 must be a multiple of the 4 blocks"),
    ("diffusion", ["--block", "0"], "--block is 0"), ("diffusion", ["--remask", "2"], "--remask is 2.0"),
    ("diffusion", ["--remask", "0.1", "--method", "top"], "--remask needs method ancestral, not top"),
    ("autoregressive", ["--suffix", "x"], "--suffix: for diffusion; "),
    ("autoregressive", ["--method", "random", "--block", "4"], "--method, --block: for diffusion; "),
    ("autoregressive", ["--steps", "4"], "is autoregressive and only continues the prompt"),
])  # fmt: skip
def test_bad_input_is_one_error(runs, objective, args, message, capsys):
    code, out, err = call(capsys, runs[objective], *args)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_the_start_token_is_never_written(runs, objective, tmp_path, capsys, monkeypatch):
    """Of a model that prefers it at about every second place."""
    config, _, model, state = load.load_run(runs[objective], device="cpu")
    with torch.no_grad():
        model.head[:256] = 0
    settings.save(config, tmp_path / "config.yaml")
    checkpoint.save(tmp_path / "checkpoints" / "best.safetensors", model, None, state)
    seen = []
    monkeypatch.setattr(Bytes, "decode", lambda self, ids: seen.extend(ids) or "")
    assert call(capsys, tmp_path, "--tokens", "24", "--temperature", "0.1")[0] == 0
    generate.generate(model, Bytes(), config, tokens=24)
    assert len(seen) == 48 and max(seen) < 256


def test_a_prompt_longer_than_the_model_reads_slides(runs, capsys):
    args = [runs["autoregressive"], "--tokens", "6", "--temperature", "0", "--json"]
    long = "x" * 50 + "the end of a prompt"
    texts = [json.loads(call(capsys, *args, "--prompt", p)[1])["texts"][0] for p in (long, "y" * 20 + long[20:])]
    assert texts[0][len(long) :] == texts[1][len(long) :]  # what lies before the window makes no difference
    assert window_start(32, 32) == 0 and window_start(33, 32) == 8 and window_start(70, 32) == 40


def test_watch_without_a_terminal_is_one_line_a_step(runs, capsys):
    args = [runs["diffusion"], "--prompt", "ab", "--tokens", "6", "--steps", "3", "--method", "random", "--watch"]
    code, out, err = call(capsys, *args)
    lines = out.split("\n")
    assert code == 0 and [line.count(live_view.BLOCK) for line in lines[:3]] == [4, 2, 0]
    assert [line[:10] for line in lines[:3]] == [f"step {s}: ab" for s in (1, 2, 3)]
    assert "\n".join(lines[3:]) == call(capsys, *args[:-1])[1]  # then what the command writes without it
    assert "\x1b" not in "".join(lines[:3])
    code, out, err = call(capsys, runs["autoregressive"], "--prompt", "ab", "--tokens", "3", "--watch", "--json")
    assert json.loads(out)["texts"] and err.count("\n") == 3


def test_the_time_that_a_text_is_shown_is_not_writing(runs, capsys, monkeypatch):
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)  # only it passes time

    class Slow(live_view.Screen):
        def __call__(self, x):
            clock.now += 0.25  # for the token
            super().__call__(x)
            clock.now += 0.5
            self.spent += 0.5

    monkeypatch.setattr(sample, "time", clock)
    monkeypatch.setattr(live_view, "time", clock)
    monkeypatch.setattr(sample, "Screen", Slow)
    result = json.loads(call(capsys, runs["autoregressive"], "--tokens", "4", "--watch", "--json")[1])
    assert result["seconds"] == pytest.approx(4 * 0.25) and result["tokens_per_s"] == pytest.approx(4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_write_nothing(runs, tmp_path, capsys, value):
    folder = tmp_path / "run"
    shutil.copytree(runs["diffusion"], folder)
    _, _, model, state = load.load_run(folder, device="cpu")
    with torch.no_grad():
        model.head[3, 3] = value
    checkpoint.save(folder / "checkpoints" / "best.safetensors", model, None, state)
    code, out, err = call(capsys, folder, "--tokens", "4")
    assert (code, out) == (1, "") and err.startswith(f"error: {folder}: the weights are not finite: ")


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_texts_that_no_memory_holds_are_refused_with_how_many_it_does(runs, capsys, monkeypatch, objective):
    monkeypatch.setattr(generate, "available_bytes", lambda device: 10**6)
    code, out, err = call(capsys, runs[objective], "--tokens", "8", "--number", "100000000")
    assert (code, out) == (2, "") and err.startswith("error: --number: 100,000,000 texts of 8 tokens take ")
    most = int(re.search(r"largest number that fits is ([\d,]+)", err)[1].replace(",", ""))
    assert 10 < most < 200
    for number, code in ((most, 0), (most + 1, 2)):
        assert call(capsys, runs[objective], "--tokens", "8", "--number", number)[0] == code


def test_control_characters_are_dots():
    assert live_view.visible("a\x1b[2J\x07\n\tü\u00a0\x7f\u200b\u0085") == "a·[2J·\n\tü\u00a0···"
