"""Measure bytes per token of one text in three vocabularies: `python -m bench.studies.bytes_per_token --text FOLDER`.

The folder holds WikiText-2 as test.txt. The vocabularies are the 256 bytes, GPT-2's first 1,024 tokens (the bytes and
its first 768 merges, about the size of parameter-golf's SP-1024), and all of GPT-2's. Nothing is trained or timed.
"""

import argparse
import json
from pathlib import Path

import tiktoken

from tdlm_fast.data.tokenizer import GPT2_PATTERN, packaged_gpt2

SIZES = (256, 1024, 50256)


def first_tokens(encoding: tiktoken.Encoding, size: int) -> tiktoken.Encoding:
    """GPT-2's encoding cut off after its first `size` tokens: fewer merges of the same pieces of text."""
    ranks = {encoding.decode_single_token_bytes(i): i for i in range(size)}
    return tiktoken.Encoding(f"gpt2-{size}", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def measure(text: str) -> list[dict]:
    encoding, size = packaged_gpt2(), len(text.encode())
    counts = ((n, len(first_tokens(encoding, n).encode_ordinary(text))) for n in SIZES)
    return [{"vocabulary": n, "tokens": k, "bytes": size, "bytes_per_token": size / k} for n, k in counts]


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--text", type=Path, required=True)
    p.add_argument("--json", type=Path, default=Path("bench/results/bytes-per-token.json"))
    a = p.parse_args()
    figures = {"text": "tokenised WikiText-2, test", "rows": measure((a.text / "test.txt").read_text(encoding="utf-8"))}
    a.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
