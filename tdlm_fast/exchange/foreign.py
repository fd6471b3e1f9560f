"""Score masked and causal language models of others, from a local folder of Hugging Face's transformers.

    logits = h W^T + b      the model's last linear layer is taken off, and the loss multiplies by it in chunks

So the estimate is that of our own runs (evaluation/likelihood.py). A masked model never predicts [MASK]: its logit is
lowered, as a text holds none. Tokens that the tokenizer puts around a text, such as [CLS] and [SEP], stand
there unmasked.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..cli import out_of_memory
from ..config import ConfigError, Data
from ..data.dataset import Split
from ..data.documents import lines
from ..data.sources import texts
from ..data.token_cache import paragraphs, published_rows, tokenize
from ..evaluation.likelihood import Likelihood, likelihood
from ..runs.device import pick_device

NEVER = -1e30  # the logit of [MASK]


def transformers():
    """Return the package transformers. Raises ConfigError where it is not installed."""
    try:
        import transformers
    except ImportError as e:
        raise ConfigError(f"--hf needs the package transformers ({e}): pip install transformers") from None
    return transformers


class Foreign(nn.Module):
    """A model of transformers with the interface of ours: tokens (B, T) -> h (B, T, D + 1), and head (V, D + 1).

    The last column of the head is its bias, and that of h is 1. before and after are ids that stand around each text.
    Raises ConfigError where the logits are not what the last linear layer makes of h.
    """

    def __init__(self, model, mask_token_id: int | None, before: list[int], after: list[int]):
        super().__init__()
        self.model, self.before, self.after, self.mask_token_id = model.eval(), before, after, mask_token_id
        last = model.get_output_embeddings()
        if not isinstance(last, nn.Linear):
            raise ConfigError(f"--hf: {type(model).__name__} has no linear layer that makes its logits")
        probe = torch.arange(min(8, last.out_features, self.most_tokens or 8), device=last.weight.device)[None]
        with torch.no_grad():
            logits = self._last(probe, torch.ones_like(probe))
            last.forward = lambda input: input
            h = self._last(probe, torch.ones_like(probe))
            made = nn.functional.linear(h, last.weight, last.bias) if h.shape[-1] == last.in_features else None
        if not torch.isfinite(logits).all():
            raise ConfigError(f"--hf: the weights of {type(model).__name__} give logits that are not finite")
        if made is None or not torch.allclose(made, logits, rtol=0, atol=1e-5 * logits.abs().max().item()):
            raise ConfigError(f"--hf: {type(model).__name__} changes its logits after the last linear layer")
        bias = last.weight.new_zeros(last.out_features) if last.bias is None else last.bias.detach().clone()
        if mask_token_id is not None and mask_token_id < len(bias):
            bias[mask_token_id] = NEVER
        self.register_buffer("head", torch.cat([last.weight.detach(), bias[:, None]], 1).float())

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that the model reads, those around the text among them; None where it has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def _last(self, tokens: Tensor, seen: Tensor) -> Tensor:
        return self.model(input_ids=tokens, attention_mask=seen).logits

    def forward(self, tokens: Tensor, *, causal: bool, valid: Tensor | None = None) -> Tensor:
        """Return h (B, T, D + 1) fp32. causal is that of the model; valid (B, T) is False at padding, at row ends."""
        (B, T), p = tokens.shape, len(self.before)
        length = tokens.new_full((B,), T) if valid is None else valid.sum(1)
        framed = tokens.new_zeros(B, p + T + len(self.after))
        framed[:, :p] = tokens.new_tensor(self.before)
        framed[:, p : p + T] = tokens
        for j, token in enumerate(self.after):
            framed[torch.arange(B, device=tokens.device), p + length + j] = token
        place = torch.arange(framed.shape[1], device=tokens.device)
        h = self._last(framed, (place < (p + length + len(self.after))[:, None]).long())[:, p : p + T].float()
        return torch.cat([h, torch.ones_like(h[..., :1])], -1)


class Ids:
    """A tokenizer of transformers with the interface that rows are made with; texts hold no special tokens."""

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab = tokenizer, len(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def around(self) -> tuple[list[int], list[int]]:
        """Return the ids that stand before and after a text."""
        [inside], whole = self.encode("a")[:1], self.tokenizer("a")["input_ids"]
        at = whole.index(inside)
        return whole[:at], whole[at + len(self.encode("a")) :]

    def ends(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text and where in it each of them ends, in characters."""
        kw = dict(add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False)
        out = self.tokenizer(text, **kw)
        return out["input_ids"], [end for _, end in out["offset_mapping"]]


def split_of(text: str, layout: str, seq_len: int, ids: Ids) -> Split:
    """Return the rows of a text; bytes are the UTF-8 bytes of the text that they hold, not those of its tokens."""
    if layout == "packed":
        tokens = tokenize(text, layout, ids)["tokens"]
        starts = np.arange(0, len(tokens), seq_len)
        lengths, words = np.minimum(seq_len, len(tokens) - starts), len(text.split()) + len(lines(text))
        return Split(tokens, lengths, seq_len, False, starts, len(text.encode()), words)
    rows, size = [], 0
    for row in published_rows(text) if layout == "published" else paragraphs(text):
        tokens, ends = ids.ends(row)
        if tokens:
            rows.append(tokens[:seq_len])
            size += len((row if len(tokens) <= seq_len else row[: ends[seq_len - 1]]).encode())
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.fromiter((t for row in rows for t in row), dtype=np.uint32)
    return Split(flat, lengths, seq_len, True, np.cumsum(lengths) - lengths, size, None)


def load(folder: Path, trust: bool, device: str) -> tuple[Foreign, Ids, str]:
    """Return (model, tokenizer, objective) of a folder. Raises ConfigError where it holds none that can be scored.

    A model is masked if its class or its mask_token_id says so. Code in the folder runs only with `trust`.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--hf {folder}: no config.json; give a local folder of transformers")
    package = transformers()
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    kw = dict(trust_remote_code=trust, local_files_only=True)
    try:
        config = package.AutoConfig.from_pretrained(folder, **kw)
        if getattr(config, "auto_map", None) and not trust:
            raise ValueError("it brings its own code")
        masked = "MaskedLM" in str(config.architectures) or getattr(config, "mask_token_id", None) is not None
        kind = "AutoModelForMaskedLM" if "MaskedLM" in str(config.architectures) else "AutoModelForCausalLM"
        model, about = getattr(package, kind).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **kw
        )
        if other := sorted(str(key[0] if isinstance(key, tuple) else key) for key in about["mismatched_keys"]):
            raise ValueError(f"{len(other)} weights have other sizes than config.json says, among them {other[0]}")
        if missing := sorted(about["missing_keys"]):
            raise ValueError(f"its weights lack {len(missing)} tensors, among them {missing[0]}")
        tokenizer = package.AutoTokenizer.from_pretrained(folder, **kw)
    except Exception as e:  # what a folder of others holds may fail in any way
        if out_of_memory(e):
            raise
        hint = "; --trust-remote-code runs the code in it" if "code" in str(e) else ""
        why = (str(e).splitlines() or [type(e).__name__])[0]
        why = f"{why} is unknown to transformers, or missing" if isinstance(e, KeyError) else why
        raise ConfigError(f"--hf {folder} cannot be loaded ({why}){hint}") from None
    ids = Ids(tokenizer)
    mask = getattr(config, "mask_token_id", None)
    mask = tokenizer.mask_token_id if masked and mask is None else mask
    if masked and mask is None:
        raise ConfigError(
            f"--hf {folder}: its tokenizer has no [MASK]; give a folder whose tokenizer or config.json names it"
        )
    before, after = ids.around() if masked else ([], [])
    objective = "diffusion" if masked else "autoregressive"
    return Foreign(model.to(pick_device(device)), mask if masked else None, before, after), ids, objective


def check_tokens(model: Foreign, rows: Split, start: int, folder: Path) -> None:
    """Raise ConfigError where rows hold a token that the model does not have."""
    largest = max(int(rows.tokens.max(initial=0)), start, *model.before, *model.after)
    if largest >= (size := model.model.get_input_embeddings().weight.shape[0]):
        raise ConfigError(f"--hf {folder}: its tokenizer gives token {largest:,}, but the model has {size:,} tokens")


def unknown(rows: Split, ids: Ids, start: int) -> int:
    """Return how many tokens of rows are [UNK]; GPT-2's <|endoftext|> is its [UNK] and its start, and no text's."""
    unk = ids.tokenizer.unk_token_id
    return 0 if unk is None or unk == start else int((rows.tokens == unk).sum())


def start_of(ids: Ids, objective: str, folder: Path) -> int:
    """Return the token before a text: the tokenizer's bos, or its eos, as GPT-2 has; -1 for a masked model.

    Raises ConfigError where the tokenizer has neither.
    """
    if objective == "diffusion":
        return -1
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(ids.tokenizer, name)) is not None:
            return token
    raise ConfigError(f"--hf {folder}: its tokenizer has no token to begin a text with, so the first has no likelihood")


@dataclass(frozen=True)
class Scored:
    objective: str
    corpus: str
    score: Likelihood
    unknown: int  # tokens [UNK] of the split: where there are some, the figures are not of the text itself


def evaluate(
    folder: Path, data: Data, split: str, *, seq_len: int, trust: bool, device: str, batch_size: int, **until
) -> Scored:
    """Score a split of data under the model in folder; until: seed, target_stderr and max_samples, as in likelihood."""
    model, ids, objective = load(folder, trust, device)
    most, around = model.most_tokens, len(model.before) + len(model.after)
    if most and seq_len + around > most:
        reads = f"this model reads {most} tokens, {around} of them around the text"
        raise ConfigError(f"--seq-len is {seq_len}; {reads}; give --seq-len {most - around} or less")
    start = start_of(ids, objective, folder)
    corpus, _, parts = texts(data)
    rows = split_of(parts[split], data.layout, seq_len, ids)
    check_tokens(model, rows, start, folder)
    score = likelihood(model, rows, objective, start_token_id=start, batch_size=batch_size, **until)
    return Scored(objective, corpus, score, unknown(rows, ids, start))
