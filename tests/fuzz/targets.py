"""What is fuzzed: each target has a strategy of inputs and a check, which fails where an input is handled wrongly.

Handled rightly is: what the input holds, or one line of error; never a traceback, a wrong result or a fault of the
interpreter. `prepared(name, folder)` makes a target ready; the folder is its own.
"""

import contextlib
import importlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from tdlm_fast import __main__ as entry
from tdlm_fast import cli, compare, kernels, train
from tdlm_fast import config as settings
from tdlm_fast.comparison import claim_schema, derived, records
from tdlm_fast.data import dataset, documents
from tdlm_fast.data.tokenizer import TOKENIZERS
from tdlm_fast.runs import checkpoint, load
from tdlm_fast.runs.files import seal

from .mutations import VALUES, Input, as_text, damaged, foreign

TINY = Path("configs/tiny.yaml")
YAML = ("&a ", "*a", "<<: *a\n", "!!int ", "!!python/object:x ", "? ", "- ", "[", "{", "}", "]", ": ", "|\n ", ">\n",
        "\t", "#", "'", '"', "%YAML 9.9\n", "---\n", "...\n", "train:\n", "  lr: 1e999\n", "~", "\ufeff", "\x00",
        "2026-99-99", "0x", "1:60:60", ".inf", "noise.schedule: [linear]\n", "model: {width: 0}\n")  # fmt: skip
WORDS = ("the ", "\n", "\n\n", " = x = \n", "=" * 200, "\r\n", "\r", "\x0c", "\u2028", "\x85", "\x00", "\ufeff", "é",
         "\u65e5\u672c", "\U0001f469\u200d\U0001f467", "<|endoftext|>", " " * 200, "0" * 60, "\ud83d", "\x1b[2J",
         '{"text": "a"}\n', "text\na\n")  # fmt: skip
JSON = ('{"text": "a"}\n', "[", "]", "{", "}", '"', ",", ":", "\\u", "\\ud800", "NaN", "1e999", "null", "[" * 99, "\n",
        '"text"', ",,", '"a""b"', "text,", "\r", "\ufeff", "\x00")  # fmt: skip


def line_of(call) -> str:
    """Run a verb, or what it calls, and return its line of error, "" where there is none. Anything else fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.exit_codes(errors=ValueError)(lambda argv: call() and None)()
        except SystemExit as e:  # argparse
            code = e.code
    errors = [line for line in err.getvalue().split("\n")[:-1] if not line.startswith("NOTE: ")]
    if code:
        assert code in (1, 2) and errors[-1].startswith("error: ") and len(errors[-1]) > 20, (code, errors)
    return errors[-1] if code else ""


def run_verb(*words) -> str:
    """Run a verb with these words; return its line of error, "" where there is none."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = entry.main([str(word) for word in words])
        except SystemExit as e:  # argparse
            code = e.code
    errors = [line for line in err.getvalue().split("\n")[:-1] if not line.startswith("NOTE: ")]
    assert code in (0, 1, 2), code
    assert not code or errors and errors[-1].startswith("error: "), (code, errors)
    return errors[-1] if code == 2 else ""


def config_file(folder):
    """A config of keys and values in YAML: it is read, or its file or key is named."""
    file = folder / "config.yaml"

    def check(case):
        file.write_bytes(case.value)
        if line := line_of(lambda: settings.load(file)):
            assert str(file) in line, line

    return damaged(TINY.read_bytes(), YAML), check


def overrides(folder):
    """Words of key=value: the config holds them, or the line names a word or a key."""
    keys = sorted(settings.fields())
    value = st.sampled_from(
        ["0", "-1", "1e999", "nan", "", "~", "[1", "{}", "true", "1_0", "9" * 400, "cuda:99", "\x00", "\ud800", "a\nb"]
    )
    word = st.builds("{}={}".format, st.sampled_from(keys) | st.text(max_size=6), value | st.text(max_size=6))

    def check(words: list[str]):
        if line := line_of(lambda: settings.load(TINY, words)):
            assert "=" in line or "unknown key " in line or any(key in line for key in keys), line

    return st.lists(word | st.text(max_size=8), min_size=1, max_size=4), check


def words(folder):
    """Words after a verb, about a folder that is not there: never more than one line."""
    modules = {verb: importlib.import_module(f"tdlm_fast.{verb.replace('-', '_')}") for verb in entry.VERBS}
    verbs = {verb: vars(module).get("parser") for verb, module in modules.items()}
    options = sorted(
        {o for p in verbs.values() if p for a in p()._actions for o in a.option_strings} - {"-h", "--help"}
    )
    value = st.sampled_from(
        ["0", "1", "-1", "2", "nan", "1e9", "", "best", "~", "~nobody/x", "/", "\x00", "é"]
    ) | st.text(max_size=6)
    verb = st.sampled_from([v for v in entry.VERBS if v not in ("doctor", "check")])
    absent = str(folder / "absent")

    def check(case):
        verb, rest = case
        assert run_verb(verb, absent, *rest)

    return st.tuples(verb, st.lists(st.sampled_from(options) | value, max_size=5)), check


def text(folder):
    """A text, in every layout and both tokenizers: all rows hold tokens of the vocabulary, and decode to the text."""
    base = ("".join(f"line {i} of a text about rivers, mills and millers\n" for i in range(60))).encode()
    file = folder / "text.txt"
    written = st.text(max_size=2000).map(lambda t: Input(t.encode(errors="replace"), t))
    choice = st.tuples(st.sampled_from(settings.LAYOUTS), st.sampled_from(sorted(TOKENIZERS)), st.integers(1, 64))

    def check(case):
        content, (layout, tokenizer, seq_len) = case
        file.write_bytes(content.value)
        data = settings.Data(path=str(file), layout=layout, tokenizer=tokenizer, cache=str(folder / "cache"))

        def read():
            corpus = dataset.load(data, seq_len)
            for split in corpus.splits.values():
                index = np.arange(min(len(split), 8))
                x0, valid = split.rows(index)
                assert x0.shape == (len(index), seq_len) and 0 <= x0.min() and x0.max() < corpus.tokenizer.vocab
                assert split.scored <= len(split.tokens) and (split.lengths > 0).all()
                assert valid is None or valid.sum(1).tolist() == split.lengths[index].tolist()
            return corpus

        read_back = []
        line = line_of(lambda: read_back.append(read()))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        if line:
            assert str(file) in line or "split of" in line, line
        elif layout == "packed":
            (corpus,) = read_back
            parts = [corpus.tokenizer.decode(s.tokens.tolist()) for s in corpus.splits.values()]
            whole = "".join(documents.documents(file))
            assert sum(map(len, parts)) >= len(whole), "text is missing"

    return st.tuples(damaged(base, WORDS) | written, choice), check


def tables(folder):
    """Documents in JSON, JSON lines and CSV: a list of texts that UTF-8 can hold, or a line that names the file."""
    rows = [{"text": f"row {i}, “quoted”"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    bases = {
        ".jsonl": lines, ".ndjson": lines, ".json": json.dumps(rows), ".csv": 'id,text\n1,"a, b"\n2,c\n3,"d ""e"" f"\n',
        ".txt": lines, ".md": lines,
    }  # fmt: skip

    def check(case):
        kind, content = case
        file = folder / f"rows{kind}"
        file.write_bytes(content.value)
        found = []
        if line := line_of(lambda: found.extend(documents.documents(file))):
            assert str(file) in line, line
        else:
            assert all(isinstance(d, str) and d.encode() is not None for d in found)

    cases = [st.tuples(st.just(kind), damaged(base.encode(), JSON)) for kind, base in bases.items()]
    values = st.lists(VALUES, max_size=3).map(lambda v: Input(as_text(v).encode(), v))
    return st.one_of(*cases, st.tuples(st.just(".json"), values)), check


def _run(folder: Path, objective: str, name: str = "run") -> Path:
    """Train a run of two steps."""
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"line {i} of a text about rivers, mills and millers\n" for i in range(80)))
    keys = [
        f"objective={objective}", f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}",
        "model.width=8", "model.inner=8", "model.heads=2", "model.layers=1", "model.seq_len=16", "train.batch_size=8",
        "train.max_steps=2", "train.log_every=1", "eval.every=1", "eval.samples=2", "eval.max_samples=2",
        "eval.published=2", "eval.probe=2", "eval.text=1", "device=cpu", f"run.dir={folder / name}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert train.main([str(TINY), *keys]) == 0
    return folder / name


def checkpoints(folder):
    """A checkpoint: the weights and the state that were saved, or a line that names the file."""
    run = _run(folder, "diffusion")
    file = run / "checkpoints" / "last.safetensors"
    sound = file.read_bytes()
    config, _, model, state = load.load_run(run, "last", "cpu")
    weights = checkpoint.weights_hash(model)
    del state["weights"]

    def check(case):
        file.write_bytes(case.value)
        loaded = []
        if line := line_of(lambda: loaded.append(checkpoint.load(file, model))):
            assert str(file) in line, line
        else:
            assert loaded == [state] and checkpoint.weights_hash(model) == weights, "damage was not noticed"

    return damaged(sound, JSON), check


def figures(folder):
    """A compare.json whose parts are foreign, sealed again: a report, or a line that names the file."""
    runs = [_run(folder, objective, objective) for objective in ("diffusion", "autoregressive")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert (
            compare.main(["--from", *map(str, runs), "--out", str(folder / "out"), "--sequences", "2", "--draws", "2"])
            == 0
        )
    file = folder / "compare.json"
    record = json.loads((folder / "out" / "compare.json").read_text())
    del record["sha256"]

    def check(case):
        file.write_text(as_text(case.value | {"sha256": seal(case.value)}))
        if line := run_verb("compare", "--from", file, "--out", folder / "again", "--sequences", "0"):
            assert str(file) in line, line

    return foreign(record), check


def run_files(folder):
    """A file of a finished run: all verbs that read it print what the run holds, or a line that names a file of it."""
    run = _run(folder, "autoregressive")
    sound = {
        name: (run / name).read_bytes() for name in ("config.yaml", "metrics.jsonl", "summary.json", "samples.txt")
    }
    verbs = {
        "evaluate": ["--max-samples", "2", "--target-stderr", "0"], "table": ["--sequences", "2", "--draws", "1"],
        "sample": ["--tokens", "2"],
    }  # fmt: skip

    def check(case):
        name, content, verb = case
        for each, whole in sound.items():
            (run / each).write_bytes(content.value if each == name else whole)
        (run / "likelihoods.json").unlink(missing_ok=True)
        if verb == "compare":  # as it reads a run
            line = line_of(lambda: records.read(run))
        else:
            line = run_verb(verb, run, *verbs[verb], "--device", "cpu")
        if line:
            assert str(run) in line or "." in line, line

    verb = st.sampled_from(["compare", *verbs])
    changed = [
        st.tuples(st.just(n), damaged(data, YAML if n == "config.yaml" else JSON), verb) for n, data in sound.items()
    ]
    summary = json.loads(sound["summary.json"])
    del summary["sha256"]
    sealed = foreign(summary).map(lambda c: Input(as_text(c.value | {"sha256": seal(c.value)}).encode(), c.events))
    return st.one_of(*changed, st.tuples(st.just("summary.json"), sealed, verb)), check


def claims(folder):
    """A claim file: its derived constants, or a line that names the file."""
    values = [json.loads(file.read_text()) for file in claim_schema.installed().values()]
    file = folder / "claims.json"

    def check(case):
        file.write_bytes(case.value)
        if line := line_of(lambda: derived.constants(claim_schema.read(file)) and None):
            assert "claims.json" in line or "derived" in line or "." in line, line

    text = [damaged(json.dumps(v).encode(), JSON) for v in values]
    return st.one_of(
        *text, *(foreign(v).map(lambda c: Input(as_text(c.value).encode(), c.events)) for v in values)
    ), check


DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SIZES = st.integers(0, 9) | st.sampled_from([16, 17, 31, 64, 65])


@st.composite
def _call(draw):
    """An op, tensors for it, most of which fit together, and its other arguments."""
    size = lambda usual: draw(st.just(usual) | SIZES) if draw(st.integers(0, 5)) == 0 else usual  # noqa: E731
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    other = draw(st.sampled_from(DTYPES)) if draw(st.integers(0, 9)) == 0 else dtype
    generator = torch.Generator().manual_seed(seed)
    N, D, V = draw(SIZES), draw(SIZES), draw(SIZES)
    wide = lambda *shape, of=dtype: torch.randn(shape, generator=generator).to(of)  # noqa: E731
    ids = lambda most, *shape: torch.randint(0, max(1, most), shape, generator=generator)  # noqa: E731
    strided = draw(st.booleans())
    op = draw(
        st.sampled_from(
            ["attention", "head", "rms_norm", "add_rms_norm", "swiglu", "embedding", "take_rows", "corrupt"]
        )
    )
    if op == "attention":
        B, H, T, K = draw(st.integers(0, 3)), draw(st.integers(1, 3)), N, 2 * draw(st.integers(0, 9))
        q, k, v = wide(B, H, T, K), wide(B, H, size(T), size(K)), wide(B, H, T, K, of=other)
        tensors, rest = [q, k, v], {"causal": draw(st.booleans())}
        if draw(st.booleans()):
            rest["valid"] = ids(2, B, size(T)).bool()
    elif op == "head":
        tensors = [wide(N, D), wide(V, size(D), of=other)]
        most = V + (draw(st.integers(0, 9)) == 0)
        rest = {"targets": ids(most, size(N)), "token_weights": wide(size(N), of=torch.float32)}
    elif op in ("rms_norm", "add_rms_norm"):
        tensors, rest = [wide(2, N, D), wide(size(D), of=other)], {}
        if op == "add_rms_norm":
            tensors.insert(1, wide(2, size(N), D, of=other))
    elif op == "swiglu":
        tensors, rest = [wide(2, N, D)], {}
    elif op == "embedding":
        tensors, rest = [wide(V, D)], {"tokens": ids(V + (draw(st.integers(0, 9)) == 0), 2, N)}
    elif op == "take_rows":
        tensors, rest = [wide(V, D)], {"rows": torch.randperm(V, generator=generator)[: size(N)]}
    else:
        x0 = ids(50, N, D)
        sampling = draw(st.sampled_from(["stratified", "antithetic", "independent", "counts", "exact", "other"]))
        tensors, rest = (
            [],
            {"x0": x0, "seed": seed, "step": draw(st.integers(0, 2**40)), "mask_token_id": 50, "sampling": sampling},
        )
        if draw(st.booleans()):
            rest["valid"] = ids(2, N, size(D)).bool()
    if strided:  # every second element of a wider tensor
        tensors = [torch.stack([a, a], -1).flatten(-2)[..., ::2] if a.dim() else a for a in tensors]
    return op, tensors, rest


def ops(folder):
    """An op on any shapes and dtypes: what the reference gives, gradients too, or an error where it gives one."""

    def result(op, tensors, rest):
        tensors = [
            a.detach().clone(memory_format=torch.preserve_format).requires_grad_() if a.is_floating_point() else a
            for a in tensors
        ]
        if op == "corrupt":
            fields = kernels.corrupt(**rest)
            return [getattr(fields, name) for name in ("xt", "masked")] if hasattr(fields, "xt") else list(fields)[:2]
        call = {
            "attention": lambda q, k, v: kernels.attention(q, k, v, **rest),
            "head": lambda h, w: kernels.linear_cross_entropy(h, w, **rest),
            "rms_norm": lambda x, w: kernels.rms_norm(x, w, 1e-6),
            "add_rms_norm": lambda x, a, w: kernels.add_rms_norm(x, a, w, 1e-6),
            "swiglu": kernels.swiglu,
            "embedding": lambda w: kernels.embedding(rest["tokens"], w),
            "take_rows": lambda h: kernels.take_rows(h, rest["rows"]),
        }[op]  # fmt: skip
        out = call(*tensors)
        outs = list(out) if isinstance(out, tuple) else [out]
        outs = [a for a in outs if isinstance(a, torch.Tensor)]
        grads = torch.autograd.grad(sum(a.double().sum() for a in outs), tensors, allow_unused=True)
        return [a.detach() for a in outs] + [g for g in grads if g is not None]

    def outcome(case):
        try:
            return result(*case)
        except (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError) as e:
            assert str(e).strip(), "an error without a word"
            return e

    def check(case):
        ours = outcome(case)
        with kernels.use_backend("reference"):
            theirs = outcome(case)
        if isinstance(ours, Exception) or isinstance(theirs, Exception):
            assert isinstance(ours, Exception) and isinstance(theirs, Exception), (ours, theirs)
            return
        of = [a.dtype for a in case[1]]  # the coarsest decides
        error = 0.05 if torch.bfloat16 in of else 1e-4 if torch.float32 in of else 1e-9
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            most = float(b.abs().max()) if b.numel() and b.is_floating_point() else 0.0
            torch.testing.assert_close(a, b, rtol=error, atol=error * max(1.0, most))

    return _call(), check


TARGETS = {
    "config.yaml": config_file, "key=value": overrides, "command line": words, "text": text, "tables": tables,
    "checkpoint": checkpoints, "compare.json": figures, "files of a run": run_files, "claim file": claims,
    "op shapes": ops,
}  # fmt: skip
