"""Models of others, from folders of transformers: exported runs, and small ones made on the spot."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import torch_free
from safetensors.torch import load_file, save_file

from tdlm_fast import evaluate
from tdlm_fast.config import ConfigError, Data
from tdlm_fast.exchange import foreign

LINES = ["the old mill", "turns by the river", "the miller sleeps", "naïve"]


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ConfigError, match="--hf needs the package transformers .*: pip install transformers"):
        foreign.transformers()


@pytest.mark.slow
def test_transformers_is_imported_from_the_root_of_the_project():
    """There a folder is named kernels, as an optional package of theirs."""
    pytest.importorskip("tokenizers", reason="needs transformers 5: pip install tdlm_fast[export]")
    code = "from tdlm_fast.exchange.foreign import transformers; transformers().LlamaForCausalLM"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_an_exported_run_scores_as_the_run_itself(transformers, runs, exported, corpus, objective, capsys):
    """The draws are functions of the seed and the row, so even the estimate is the same."""
    held = json.loads((runs[objective] / "summary.json").read_text())["test"]
    args = ["--text", str(corpus), "--layout", "paragraphs", "--seq-len", "24", "--seed", "42", "--max-samples", "4"]
    capsys.readouterr()
    assert evaluate.main(["--hf", str(exported[objective]), *args, "--json", "--device", "cpu"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["nats_per_token"] == pytest.approx(held["nats_per_token"], rel=1e-4)
    assert score["stderr"] == pytest.approx(held["stderr"], rel=1e-2, abs=1e-9)
    assert (score["tokens"], score["bound"], score["samples"]) == (held["tokens"], held["bound"], held["samples"])
    assert score["bits_per_byte"] == pytest.approx(held["bits_per_byte"], rel=1e-4) and score["unknown_tokens"] == 0


def bert(transformers, folder, positions=16):
    """A random BERT of 40 words with [CLS] and [SEP], far from uniform."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the old mill turns by river miller sleeps".split()]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=positions, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).eval().save_pretrained(folder)


@pytest.mark.slow
@torch.no_grad()
def test_a_bert_is_scored_between_its_special_tokens(transformers, tmp_path):
    bert(transformers, tmp_path)
    model, ids, objective = foreign.load(tmp_path, False, "cpu")
    assert objective == "diffusion" and (model.before, model.after) == ([2], [3]) and model.mask_token_id == 4
    split = foreign.split_of("\n".join(LINES), "paragraphs", 4, ids)
    assert split.lengths.tolist() == [3, 4, 3, 1] and split.bytes == len("".join(LINES).encode())  # ï is two bytes
    assert (split.tokens == 1).sum() == 1  # naïve is unknown
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    x0, valid = split.rows(np.arange(4))
    x = torch.where(torch.tensor([True, False, True, False]) & valid, 4, x0)
    ours = (model(x, causal=False, valid=valid) @ model.head.T).log_softmax(-1)
    for row, n, own in zip(x, split.lengths, ours, strict=True):
        logits = theirs(torch.tensor([[2, *row[:n].tolist(), 3]])).logits[0, 1:-1]
        logits[:, 4] = -torch.inf
        torch.testing.assert_close(own[:n].exp(), logits.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_a_gpt2_is_scored_exactly_and_its_bytes_are_the_texts(transformers, exported, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=1025, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1024, eos_token_id=1024,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    gpt2.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(exported["autoregressive"]).save_pretrained(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for name in ("train", "valid", "test"):
        (text / f"{name}.txt").write_text("\n".join(LINES))
    options = dict(seq_len=8, trust=False, device="cpu", batch_size=3, target_stderr=0.0, max_samples=2)
    done = foreign.evaluate(tmp_path, Data(path=str(text)), "test", **options)
    ids = foreign.load(tmp_path, False, "cpu")[1].encode("\n".join(LINES))
    rows = [ids[i : i + 8] for i in range(0, len(ids), 8)]
    total = sum(F.cross_entropy(gpt2(torch.tensor([[1024, *row[:-1]]])).logits[0], torch.tensor(row), reduction="sum")
                for row in rows).item()  # fmt: skip
    assert done.objective == "autoregressive" and done.score.bound == "exact" and done.score.tokens == len(ids)
    assert done.score.nats_per_token * len(ids) == pytest.approx(total, rel=1e-5)
    size = len("\n".join(LINES).encode())
    assert done.score.bits_per_byte == pytest.approx(total / size / math.log(2), rel=1e-5)
    with pytest.raises(ConfigError, match="--seq-len is 17; this model reads 16 tokens, .*; give --seq-len 16 or less"):
        foreign.evaluate(tmp_path, Data(path=str(text)), "test", **options | {"seq_len": 17})


@pytest.mark.slow
def test_logits_that_are_changed_after_the_last_layer_are_refused(transformers):
    """Gemma 2 bends its logits by c tanh(logits / c), which the fused cross-entropy does not."""
    torch.manual_seed(0)
    for cap in (30.0, None):
        config = transformers.Gemma2Config(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=cap, initializer_range=0.5,
        )  # fmt: skip
        model = transformers.Gemma2ForCausalLM(config)
        if cap:
            with pytest.raises(ConfigError, match="Gemma2ForCausalLM changes its logits after the last linear layer"):
                foreign.Foreign(model, None, [], [])
        else:
            foreign.Foreign(model, None, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("how, says", [
    ("missing", "its weights lack . tensors, among them cls.predictions.bias"),
    ("cut short", "cannot be loaded"), ("another size", "weights have other sizes"), ("a word", "cannot be loaded"),
    ("three heads", "cannot be loaded"), ("a gate", "'nosuch' is unknown to transformers, or missing"),
    ("not finite", "give logits that are not finite"), ("another tokenizer", "its tokenizer gives token 12, but"),
    ("no [MASK]", r"its tokenizer has no \[MASK\]; give a folder whose tokenizer or config.json names it"),
])  # fmt: skip
def test_a_folder_that_does_not_fit_together_is_named(transformers, tmp_path, how, says):
    bert(transformers, tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    wrong = {"another size": {"vocab_size": 7}, "a word": {"vocab_size": "x"}}
    wrong |= {"three heads": {"num_attention_heads": 3}, "a gate": {"hidden_act": "nosuch"}}
    if how == "missing":
        save_file({k: v for k, v in tensors.items() if k != "cls.predictions.bias"}, weights, {"format": "pt"})
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "not finite":
        save_file({k: v * float("nan") for k, v in tensors.items()}, weights, {"format": "pt"})
    elif how in wrong:
        about = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(about | wrong[how]))
    elif how == "no [MASK]":
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": None}))
    else:
        model = transformers.BertForMaskedLM.from_pretrained(tmp_path)
        model.resize_token_embeddings(10)
        model.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("the old mill turns by the river\nmiller sleeps\n" * 40)
    options = dict(seq_len=4, trust=False, device="cpu", batch_size=3, target_stderr=0.0, max_samples=2)
    with pytest.raises(ConfigError, match=says) as e:
        foreign.evaluate(tmp_path, Data(path=str(tmp_path / "text.txt"), layout="paragraphs"), "test", **options)
    assert "--hf" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow
def test_code_in_a_folder_does_not_run_unless_it_is_trusted(transformers, tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    about = {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="--hf .* cannot be loaded .*--trust-remote-code"):
        foreign.load(tmp_path, False, "cpu")


@pytest.mark.parametrize("args, says", [
    ("", "give a run folder, or --hf FOLDER"), ("RUN --hf X", "give a run folder, or --hf FOLDER"),
    ("RUN --seq-len 4", "--seq-len: only with --hf"), ("--hf X --tasks piqa", "--tasks: only without --hf"),
    ("--hf X --seq-len 0", "--seq-len is 0"),
])  # fmt: skip
def test_options_are_checked_before_torch_is_loaded(args, says):
    assert says in torch_free("evaluate", *args.split())


@pytest.mark.slow
def test_transformers_is_imported_in_the_folder_of_the_project():
    """It looks for a package named kernels, and finds the folder of ours."""
    root = Path(__file__).parents[2]
    lines = "from transformers import LlamaForCausalLM, utils; print(utils.is_kernels_available())"
    ended = subprocess.run([sys.executable, "-c", lines], cwd=root, capture_output=True, text=True)
    assert ended.stdout == "False\n", ended.stderr
    for wrong in ("from kernels import attention", "import kernels; kernels.swiglu"):
        ended = subprocess.run([sys.executable, "-c", wrong], cwd=root, capture_output=True, text=True)
        assert "this folder is imported as tdlm_fast.kernels" in ended.stderr
    ended = subprocess.run([sys.executable, "-c", "import kernels.ops"], cwd=root, capture_output=True, text=True)
    assert "No module named 'kernels.ops'" in ended.stderr
