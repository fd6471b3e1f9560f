"""The keys of a config: frozen dataclasses, each field with one line of meaning, which --help prints with its default.

config.py reads, checks and writes them.
"""

import math
from dataclasses import dataclass, field

CORPORA = ("wikitext-2", "wikitext-103", "sotu", "markov-1", "markov-2", "markov-3")  # the names without an owner
TOKENIZERS, LEARNED = ("gpt2", "gpt2-1024", "bytes"), range(257, 65537)  # data/tokenizer.py; tokens of bpe-N
LAYOUTS = ("packed", "paragraphs", "published")  # data/token_cache.py
SCHEDULES = ("linear", "log-linear", "cosine", "cosine-maskgit", "polynomial")  # kernels/schedules.py, tested equal


def about(default, meaning: str, choices: tuple = (), path: bool = False):
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "path": path})


@dataclass(frozen=True, kw_only=True)
class Run:
    dir: str = about("", "run folder (empty: runs/NAME-OBJECTIVE-seedSEED, NAME from the YAML file)", path=True)
    wandb: str = about("off", "Weights & Biases", ("off", "offline", "online"))
    tensorboard: bool = about(False, "write events for TensorBoard into the run folder (pip install tensorboard)")


@dataclass(frozen=True, kw_only=True)
class Data:
    corpus: str = about("wikitext-2", "wikitext-2, sotu, markov-1 to -3, or a dataset of the Hub (owner/name[:config])")
    path: str = about("", "local text file, .jsonl, or folder with train/valid/test; overrides corpus", path=True)
    if_unreachable: str = about("error", "what to do if the Hub cannot be reached", ("sotu", "error"))
    tokenizer: str = about("gpt2", "gpt2, gpt2-1024, bytes, or bpe-N: N tokens learned from the training split")
    unique_tokens: int = about(0, "most training tokens: a nested prefix of the shuffled rows; 0: all of them")
    layout: str = about(
        "packed", "packed: blocks of seq_len; paragraphs: one per row; published: a line per row, as it is", LAYOUTS
    )
    cache: str = about(".cache/tokens", "folder of the token cache", path=True)

    @property
    def learned_tokens(self) -> int:
        """Return the N of tokenizer=bpe-N, 0 for other tokenizers."""
        name, _, n = self.tokenizer.partition("-")
        return int(n) if name == "bpe" and n.isascii() and n.isdigit() else 0

    @property
    def markov_order(self) -> int:
        """Return the K of corpus=markov-K (data/markov.py), 0 for other text."""
        source, _, order = self.corpus.partition("-")
        return int(order) if source == "markov" and self.corpus in CORPORA and not self.path else 0

    @property
    def padded(self) -> bool:
        """Whether rows differ in length and are padded to model.seq_len."""
        return self.layout != "packed"


# parameters of all blocks: layers, width and heads; the width inside the MLP is 8/3 of it, rounded to 64
SIZES = {
    "0.1M": (2, 64, 4), "0.75M": (4, 128, 4), "2.7M": (6, 192, 6), "4.8M": (6, 256, 8), "10.6M": (6, 384, 6),
    "24.9M": (8, 512, 8), "49.6M": (10, 640, 10), "85M": (12, 768, 12),
}  # fmt: skip
BASE_LAYERS, BASE_WIDTH = SIZES["0.1M"][:2]  # at which optim.transfer=completep changes nothing


def shape_of(size: str) -> dict[str, int]:
    """Return the keys that model.size sets, {dotted key: value}: layers, width, heads and inner."""
    layers, width, heads = SIZES[size]
    return {
        "model.layers": layers, "model.width": width, "model.heads": heads, "model.inner": 64 * round(width / 24),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Model:
    size: str = about("", "sets layers, width, heads and inner by the parameters of all blocks", ("", *SIZES))
    layers: int = about(2, "transformer blocks")
    width: int = about(64, "width of the residual stream")
    heads: int = about(4, "attention heads")
    seq_len: int = about(128, "tokens per sequence")
    inner: int = about(0, "width inside the MLP (0: 3 x width for swiglu, 4 x width for gelu)")
    mlp: str = about("swiglu", "MLP", ("swiglu", "gelu"))
    positions: str = about("rope", "position encoding", ("rope", "learned"))
    tied: bool = about(False, "embedding and head share their weights")
    dropout: float = about(0.1, "dropout of embeddings and attention")
    norm_eps: float = about(1e-6, "added to the mean square in every RMSNorm")


@dataclass(frozen=True, kw_only=True)
class Train:
    batch_size: int = about(64, "sequences per optimizer step")
    epochs: float = about(5.0, "passes over the training split")
    max_steps: int = about(0, "optimizer steps; 0: as many as the epochs need")
    accumulation: int = about(1, "micro-batches per optimizer step; must divide batch_size")
    capture: str = about("auto", "replay the step as one CUDA graph where the device can", ("auto", "off"))
    log_every: int = about(10, "steps between lines of metrics.jsonl")
    save_every: int = about(0, "steps between checkpoints; 0: at every evaluation")
    keep_at: str = about("", "steps whose checkpoints are kept, as checkpoints/step-N.safetensors: 100,200")
    branch_from: str = about("", "run, or one of its kept checkpoints, whose training this run continues", path=True)


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = about(3e-4, "peak learning rate of AdamW")
    min_lr: float = about(3e-5, "learning rate at the end of the cosine or of wsd's decay")
    schedule: str = about(
        "cosine", "learning rate after the warm-up; wsd: constant, then a decay", ("cosine", "wsd", "constant")
    )
    decay: float = about(0.15, "wsd: share of the steps, at the end, with a falling learning rate")
    transfer: str = about(
        "none", "completep: learning rate, decay and residual branches carry over from 2 layers x 64",
        ("none", "completep"),
    )  # fmt: skip
    beta1: float = about(0.9, "AdamW's beta 1")
    beta2: float = about(0.95, "AdamW's beta 2")
    weight_decay: float = about(0.1, "decoupled decay, on matrices only, not embeddings and norms")
    warmup: float = about(0.005, "share of the steps with a rising learning rate")
    warmup_steps: int = about(0, "steps with a rising learning rate; 0: the share optim.warmup of all")
    warmup_start: float = about(0.0, "share of the peak rate at the first step; 0: 1 / steps of the warm-up")
    clip: float = about(1.0, "largest norm of the gradient; 0: no clipping")
    ema: float = about(0.0, "decay of an average of the weights, which is evaluated in their place; 0: none")

    def decay_begins(self, steps: int) -> int:
        """Return the step, counted from 0, at which the decay of wsd begins in a run of `steps` steps."""
        return steps - max(1, math.ceil(self.decay * steps))


@dataclass(frozen=True, kw_only=True)
class Noise:
    schedule: str = about("linear", "noise schedule of the diffusion objective", SCHEDULES)
    sampling: str = about(
        "stratified",
        "how noise levels are drawn over the batch; counts: stratified, and exactly ceil(m n) tokens masked; "
        "exact: independent, and exactly int(m n), as published",
        ("stratified", "antithetic", "independent", "counts", "exact"),
    )
    input_masking: float = about(0.0, "control arm, autoregressive objective: share of input tokens replaced by [MASK]")


@dataclass(frozen=True, kw_only=True)
class Eval:
    every: int = about(0, "steps between evaluations; 0: once per epoch")
    early: str = about("", "further steps to evaluate at, as 2,10,20,50; those beyond the last are left out")
    published: int = about(1, "draws of the published metric (not a likelihood) at every evaluation; 0: none")
    probe: int = about(16, "sequences of the probe batch of the diagnostics at every evaluation; 0: none")
    samples: int = about(4, "most noise draws per sequence, in an evaluation while training")
    target_stderr: float = about(0.01, "standard error in nats per token at which the final evaluation stops drawing")
    max_samples: int = about(64, "most noise draws per sequence, in the final evaluation")
    batch_size: int = about(64, "sequences per forward pass of evaluation")
    text: int = about(1, "samples of text written at every evaluation; 0: none")


@dataclass(frozen=True, kw_only=True)
class Config:
    objective: str = about("diffusion", "training objective", ("diffusion", "autoregressive"))
    seed: int = about(42, "seed of initialisation, batches, masks and dropout")
    device: str = about("auto", "auto, cpu, cuda, cuda:N")
    precision: str = about(
        "auto", "bf16: products in bf16, weights and sums in fp32; auto: fp32 on a CPU without fast products of bf16",
        ("auto", "bf16", "fp32"),
    )  # fmt: skip
    loss_weight: str = about(
        "elbo", "weight of the training loss; reports use the bound", ("elbo", "uniform", "published")
    )
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    optim: Optim = Optim()
    noise: Noise = Noise()
    eval: Eval = Eval()
