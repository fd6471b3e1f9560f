"""A whole comparison at a small setting: trained, judged, reported, resumed, and nothing but the objective differs."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tdlm_fast import check, compare, report, step, table, train
from tdlm_fast import config as settings

SMALL = ["train.max_steps=24", "train.log_every=4", "train.save_every=8", "eval.every=12", "eval.probe=4",
         "eval.early=2", "eval.text=0"]  # fmt: skip


def without_folder(tiny):
    return [t for t in tiny if not t.startswith("run.dir=")]


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    """The folder of a comparison of two seeds, its config keys, and what it printed."""
    folder = tmp_path_factory.mktemp("compare")
    keys = [
        f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}", "model.width=16",
        "model.inner=24", "model.heads=2", "model.seq_len=32", "train.batch_size=16", "eval.samples=2",
        "eval.max_samples=4", "optim.lr=3e-3", "device=cpu", *SMALL,
    ]  # fmt: skip
    command = ["configs/tiny.yaml", *keys, "--seeds", "2", "--out", str(folder / "out")]
    command += ["--sequences", "3", "--draws", "2"]
    assert compare.main(command) == 0
    return folder / "out", command


def test_it_trains_judges_and_reports(done):
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    assert [a["label"] for a in result["arms"]] == ["diffusion", "autoregressive"] and result["seeds"] == [42, 43]
    for arm in result["arms"]:
        for run in arm["runs"]:
            assert [e["step"] for e in run["evaluations"]] == [0, 2, 12, 24]
            assert all(e["published"]["published_metric"] > 1 for e in run["evaluations"])
            assert all(len(e["diagnostics"]["grad_norm"]) == 10 for e in run["evaluations"])
            assert run["evaluations"][0]["loss_tokens"] == 0 < run["evaluations"][1]["loss_tokens"]
    assert all("equal" in line and "DIFFERENT" not in line for line in result["alike"]) and len(result["alike"]) == 2
    zero = result["untrained"]
    assert abs(zero["right"]["mean"]) < 0.1 < 0.5 < zero["as_published"]["mean"]  # better with no learning at all
    assert {c["verdict"] for c in result["claims"]} <= {
        "holds", "does not hold", "an artefact of the metric", "undecided",
    }  # fmt: skip
    assert [r["ledger"] for r in result["ledgers"]] == list(compare.LEDGERS)


def test_the_same_command_runs_nothing_again(done, monkeypatch, capsys):
    out, command = done
    before = {f: f.stat().st_mtime_ns for f in out.glob("*/*") if f.parent.name != "figures"}
    monkeypatch.setattr(compare.subprocess, "Popen", lambda *a, **k: pytest.fail("a finished run was trained again"))
    monkeypatch.setattr("tdlm_fast.published.both", lambda *a, **k: pytest.fail("a finished table was made again"))
    page = (out / "report.html").read_text()
    assert compare.main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert (out / "report.html").read_text() == page


def test_a_stopped_comparison_goes_on(done, tmp_path):
    """SIGTERM in the first run: it saves; the same command then ends with the losses of the run never stopped."""
    out, command = done
    again = [str(tmp_path / "out") if c == str(out) else c for c in command] + ["--sequences", "0"]
    again[again.index("--seeds") + 1] = "1"
    process = subprocess.Popen([sys.executable, "-m", "tdlm_fast.compare", *again], stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "out" / "diffusion-seed42" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 4' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert "the same command goes on" in process.communicate(timeout=120)[1] and process.returncode == 130
    assert not (tmp_path / "out" / "report.html").exists()
    assert compare.main(again) == 0
    stopped, whole = (compare.read(f / "diffusion-seed42") for f in (tmp_path / "out", out))
    assert stopped["losses"][-1] == whole["losses"][-1] and stopped["summary"]["test"] == whole["summary"]["test"]


class _Page(HTMLParser):
    VOID = {"meta", "path", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_stands_alone(done):
    out, _ = done
    text = (out / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    names = {t for t, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe"}) and "url(" not in text and "@import" not in text
    assert not [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    result = json.loads((out / "compare.json").read_text())
    said = "".join(page.text)
    for claim in result["claims"]:
        assert claim["claim"] in said and claim["verdict"] in said
    assert len([t for t, _ in page.tags if t == "svg"]) >= 18 and "nan" not in said.lower()
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (out / name).is_file(), name
    assert report.paragraph(result) in markdown and report.paragraph(result) in said.replace("\n", " ")


def test_from_compares_finished_runs_and_names_what_cannot_be(done, tmp_path, capsys):
    out, _ = done
    runs = [str(out / f"{o}-seed42") for o in ("autoregressive", "diffusion")]
    assert compare.main(["--from", *runs, "--out", str(tmp_path / "out"), "--sequences", "0"]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["seeds"] == [42] and result["arms"][0]["objective"] == "diffusion"
    capsys.readouterr()
    assert compare.main(["--from", runs[0], str(tmp_path / "absent")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert compare.main(["--from", runs[0]]) == 2 and "two runs" in capsys.readouterr().err
    assert compare.main(["configs/tiny.yaml", "seed=3"]) == 2 and "use --seeds" in capsys.readouterr().err
    assert compare.main(["configs/tiny.yaml", "optim.lrr=3"]) == 2 and "optim.lr" in capsys.readouterr().err
    one = [str(out / f"autoregressive-seed{s}") for s in (42, 43)]
    assert compare.main(["--from", *one, "--out", str(tmp_path / "one"), "--sequences", "0"]) == 0
    assert "one objective only" in (tmp_path / "one" / "report.md").read_text()


def test_only_the_objective_differs(tiny, tmp_path, monkeypatch):
    """What the two trainings really see: weights before the first step, and every batch."""
    seen = {}
    real = step.train_step
    for objective in compare.OBJECTIVES:
        log = seen[objective] = []

        def spy(model, optimizer, loss_of, split, config, log=log, **kw):
            if not log:
                log.append(train.weights_hash(model))
                log.append([(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups])

            def loss(model, x0, **rest):
                log.append((x0.clone(), None if rest["valid"] is None else rest["valid"].clone()))
                return loss_of(model, x0, **rest)

            return real(model, optimizer, loss, split, config, **kw)

        monkeypatch.setattr(step, "train_step", spy)
        keys = [*without_folder(tiny), *SMALL, f"objective={objective}"]
        train.train(settings.load("configs/tiny.yaml", keys), tmp_path / objective, resume=False)
    a, b = seen["diffusion"], seen["autoregressive"]
    assert a[0] == b[0] and a[1] == b[1] and len(a) == len(b) == 26
    for (x, valid), (y, other) in zip(a[2:], b[2:], strict=True):
        assert torch.equal(x, y) and torch.equal(valid, other)
    assert not torch.equal(a[2][0], a[3][0])


def test_diagnostics_do_not_move_training(tiny, tmp_path):
    hashes = set()
    for probe in (0, 4):
        keys = [*without_folder(tiny), *SMALL, f"eval.probe={probe}", f"eval.published={probe}", "train.max_steps=13"]
        train.train(settings.load("configs/tiny.yaml", keys), tmp_path / str(probe), resume=False)
        lines = map(json.loads, (tmp_path / str(probe) / "metrics.jsonl").read_text().splitlines())
        hashes.add(tuple(e["loss"] for e in lines if "loss" in e))
    assert len(hashes) == 1


def test_flops_are_the_count_of_their_products(done, references):
    """Against PyTorch's own counter on the plain model: forward and backward are three times the forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from tdlm_fast.sample import load_run

    out, _ = done
    run = compare.read(out / "autoregressive-seed42")
    model = load_run(out / "autoregressive-seed42", "last", "cpu")[2]
    x = torch.randint(0, 256, (16, 32))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(x, causal=False) @ model.head.T
    # Norms have parameters but no product: 6 x 16 a norm and place.
    assert compare.flops(run, 1, 512) == pytest.approx(3 * counter.get_total_flops() + 6 * 512 * 4 * 16)
    assert compare.flops(run, 1, None) is None


CONTROLS = {
    "ar-input-masking": {"objective", "noise.input_masking"}, "ar-no-dropout": {"objective", "model.dropout"},
    "ar-more-decay": {"objective", "optim.weight_decay"}, "diffusion-uniform": {"loss_weight"},
    "diffusion-published": {"loss_weight"},
}  # fmt: skip


def test_controls_change_what_their_name_says():
    base = settings.flatten(settings.load("configs/tiny.yaml"))
    assert {f.stem for f in Path("configs/controls").glob("*.yaml")} == set(CONTROLS)
    for name, keys in CONTROLS.items():
        other = settings.flatten(settings.load(f"configs/controls/{name}.yaml"))
        assert {k for k in base if base[k] != other[k]} == keys, name
    assert compare.label(settings.flatten(settings.load("configs/controls/ar-no-dropout.yaml")), base) == (
        "autoregressive dropout=0.0"
    )


def test_next_token_is_compared_with_any_weight_of_diffusion():
    file, configs = Path("configs/controls/diffusion-uniform.yaml"), {}
    for objective in compare.OBJECTIVES:
        keys = compare.keys_of(file, [f"objective={objective}", "loss_weight=published"])
        configs[objective] = settings.flatten(settings.load(file, keys))
    assert [c["loss_weight"] for c in configs.values()] == ["published", "elbo"]
    assert compare._differences(*configs.values()) == ["objective"]
    other = configs["diffusion"] | {"loss_weight": "uniform"}
    assert compare.label(other, configs["diffusion"]) == "diffusion loss_weight=uniform"


def test_check_passes_on_a_run_and_fails_on_a_broken_instrument(done, monkeypatch, capsys):
    out, _ = done
    folder = out / "diffusion-seed42"
    args = [str(folder), "--sequences", "12", "--device", "cpu"]
    assert check.main(args) == 0
    said = capsys.readouterr().out
    assert "all checks passed" in said and "replayed" in said and "FAIL" not in said
    from tdlm_fast import likelihood

    real = likelihood.masked_sums
    monkeypatch.setattr(likelihood, "masked_sums", lambda *a, **k: 1.02 * real(*a, **k))
    assert check.main(args) == 1
    assert "FAIL  uniform predictor, diffusion" in capsys.readouterr().out
    monkeypatch.undo()
    metrics = folder / "metrics.jsonl"
    text = metrics.read_text()
    try:
        metrics.write_text(text.replace('"loss_tokens": ', '"loss_tokens": 1', 4))
        assert check.main(args) == 1 and "FAIL  tokens and masks of 24 steps" in capsys.readouterr().out
    finally:
        metrics.write_text(text)
    assert check.main([str(out / "absent")]) == 2


def test_the_table_says_every_likelihood_once(done, capsys):
    out, _ = done
    assert table.main([str(out / "diffusion-seed43"), "--sequences", "3", "--draws", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for name in ("bound", "left-to-right", "confidence", "unigram baseline", "published metric", "not a likelihood"):
        assert name in said
    kept = json.loads((out / "diffusion-seed43" / "likelihoods.json").read_text())
    bound, exact = kept["per_sequence"]["bound"], kept["per_sequence"]["left-to-right"]
    assert len(bound) == len(exact) == 3 and kept["rows"][0]["nats_per_token"] > 0
    assert kept["uniform_factor"] < 5 / 6
