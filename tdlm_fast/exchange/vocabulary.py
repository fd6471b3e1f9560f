"""Write a tokenizer as other tools read it: a byte-level BPE, in the letters that GPT-2's files give to bytes.

GPT-2's files are text, so each byte has a letter there: printable bytes their own, the others U+0100 and on. The ranks
of tokens name no merges, but each token of two bytes or more is what one merge makes: the two parts that are left where
BPE runs on its bytes with the tokens before it.
"""

from ..data.tokenizer import GPT2, Bytes, Tokenizer, letters

START, MASK = "<|endoftext|>", "[MASK]"


def parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts whose merge makes a token, of at least two bytes; ranks: {token: rank}."""
    pieces, rank = [bytes([b]) for b in token], ranks[token]
    while len(pieces) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in zip(pieces, pieces[1:], strict=False)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[i] >= rank:
            raise ValueError(f"no merges make the token {token!r}")
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces[0], pieces[1]


def bpe(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Return (tokens without the start token, merges "LEFT RIGHT") in GPT-2's letters, in the order of their ids."""
    letter = letters()

    def spelled(token: bytes) -> str:
        return "".join(letter[b] for b in token)

    if isinstance(tokenizer, Bytes):
        return [letter[b] for b in range(256)], []
    tokens = tokenizer.tokens()
    ranks = {token: i for i, token in enumerate(tokens)}
    pairs = [parts(token, ranks) for token in tokens if len(token) > 1]
    return [spelled(token) for token in tokens], [f"{spelled(a)} {spelled(b)}" for a, b in pairs]


def tokenizer_json(tokenizer: Tokenizer, objective: str) -> dict:
    """Return the tokenizer.json of Hugging Face's `tokenizers`.

    An autoregressive model's puts the start token before every text, as in training; a diffusion model's adds nothing,
    and has [MASK].
    """
    tokens, merges = bpe(tokenizer)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level["use_regex"] = isinstance(tokenizer, GPT2)  # ByteLevel's own pattern is GPT-2's
    special = [(tokenizer.start_token_id, START)] + [(tokenizer.vocab, MASK)] * (objective == "diffusion")
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    first = {"SpecialToken": {"id": START, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start = {"id": START, "ids": [tokenizer.start_token_id], "tokens": [START]}
    before = {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": {START: start},
    }
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": content} | flags for i, content in special],
        "normalizer": None, "pre_tokenizer": level,
        "post_processor": before if objective == "autoregressive" else level, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)} | {content: i for i, content in special},
            "merges": [pair.split(" ") for pair in merges],
        },
    }  # fmt: skip
