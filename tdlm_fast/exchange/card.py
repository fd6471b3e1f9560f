"""Write the card of an exported model: what it is, its measured figures, and how to use it."""

from pathlib import Path

from .. import config as settings
from ..runs.metrics import summary_of

HF = {
    "diffusion": """```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model, tokenizer = AutoModelForMaskedLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
logits = model(**tokenizer("The [MASK] of the", return_tensors="pt")).logits  # of every place at once
```
To write text, mask all of it and unmask a few places a step, or run `tdlm-fast sample` on the run itself. The head
gives `[MASK]` the probability 0.""",
    "autoregressive": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
print(tokenizer.decode(model.generate(**tokenizer("The ", return_tensors="pt"), max_new_tokens=64, do_sample=True)[0]))
```
The tokenizer puts `<|endoftext|>` before every text, as in training. No training text contains it, so it is never
written, and no token ends a text.""",
}
GGUF = {
    "diffusion": """The architecture is `llada`, with bidirectional attention and logits that are not shifted. The head
has a row of zeros for `[MASK]`, which GGUF cannot forbid, so a program that writes text must never draw `[MASK]`.""",
    "autoregressive": "The architecture is `llama`. The start token `<|endoftext|>` stands before every text.",
}


def figures(folder: Path) -> dict:
    """Return the run's figures for a card and for metadata, {} of a run that is not finished."""
    summary = summary_of(folder)
    if not summary.get("finished"):
        return {}
    test = summary["test"]
    names = ("nats_per_token", "stderr", "ppl", "bits_per_byte", "bound", "samples", "tokens")
    return {name: test.get(name) for name in names} | {
        "corpus": summary["corpus"], "steps": summary["steps"], "parameters": summary["parameters"],
    }  # fmt: skip


def measured(known: dict) -> str:
    """Return the paragraphs about the measured likelihood."""
    if not known:
        return "This run is not finished, so nothing is measured yet."
    error = f" ± {known['stderr']:.4f} (standard error)" if known["samples"] else ""
    bound = known["bound"]
    bits = "–" if known["bits_per_byte"] is None else f"{known['bits_per_byte']:.4f}"
    text = f"""| test split of {known["corpus"]} | {bound} |
|---|---|
| nats per token | {known["nats_per_token"]:.4f}{error} |
| perplexity | {known["ppl"]:.2f} |
| bits per byte | {bits} |

{known["steps"]:,} steps, {known["parameters"]:,} parameters."""
    if bound != "upper bound":
        return f"{text} The likelihood is {bound}: a text has one probability, from one forward pass."
    return f"""{text} The figures are an **upper bound**, estimated with {known["samples"]} draws of masks per row: the
likelihood of a masked diffusion model adds up all orders of unmasking, and the true nats may be fewer. An
autoregressive model's exact likelihood must not be compared with it as if both were exact."""


def card(config: settings.Config, known: dict, to: str) -> str:
    """Return README.md of an export to "hf" or "gguf"; known is `figures`."""
    objective, head = config.objective, ""
    if to == "hf":
        task = "fill-mask" if objective == "diffusion" else "text-generation"
        head = f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [tdlm_fast, {objective}]\n---\n"
    kind = "masked diffusion" if objective == "diffusion" else "autoregressive"
    m = config.model
    again = f"--layout {config.data.layout} --seq-len {m.seq_len} --text FOLDER"
    check = f"\n`tdlm-fast evaluate --hf . {again}` measures it again on a text.\n" if to == "hf" else ""
    return f"""{head}# A tiny {kind} language model

Trained with tdlm_fast: {m.layers} layers of width {m.width}, {m.heads} heads, sequences of {m.seq_len} tokens,
tokenizer {config.data.tokenizer}.

## Measured
{measured(known)}
{check}
## Use
{(HF if to == "hf" else GGUF)[objective]}
"""
