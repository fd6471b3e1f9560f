"""Hypothesis strategies of damaged input: bytes of a file that something happened to, and JSON with a foreign part."""

import copy
import json

from hypothesis import strategies as st


class Input:
    """A damaged value, and in its repr what happened to it: the value itself may be long."""

    def __init__(self, value, events):
        self.value, self.events = value, events

    def __repr__(self) -> str:
        return f"Input after {self.events!r}"


KINDS = ("flip", "cut", "drop", "insert", "repeat", "swap", "replace")


def _changed(data: bytes, kind: str, at: int, length: int, more: bytes) -> bytes:
    """Return data after one event at `at`, which may lie behind its end."""
    at %= len(data) + 1
    end = min(len(data), at + length)
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :] if at < len(data) else data
    return {
        "cut": data[:at], "drop": data[:at] + data[end:], "insert": data[:at] + more + data[at:],
        "repeat": data[:end] + data[at:], "swap": data[end:] + data[:at] + data[at:end],
        "replace": data[:at] + more + data[end:],
    }[kind]  # fmt: skip


def damaged(data: bytes, pieces=(), most: int = 4):
    """An Input of the bytes of `data` after one to `most` events, which insert random bytes or `pieces`."""
    more = st.binary(max_size=8)
    if pieces:
        more |= st.sampled_from([p.encode(errors="surrogatepass") for p in pieces])
    event = st.tuples(st.sampled_from(KINDS), st.integers(0, len(data)), st.integers(1, 64), more)

    def apply(events):
        result = data
        for kind, at, length, extra in events:
            result = _changed(result, kind, at, length, extra)
        return Input(result, events)

    return st.lists(event, min_size=1, max_size=most).map(apply)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([0, -1, 10**30, 1e308, "", "0", "NaN", "\ud800", "a\nb", "\x1b[2J", "<b>", [], {}, [[]], [None]]),
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=6)  # fmt: skip


def _places(value, at=()):
    """Every path of keys and indices into a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*at, key))


def foreign(value):
    """An Input of a JSON value with one to three parts removed or replaced by foreign ones."""
    places = list(_places(value))[1:]
    change = st.tuples(st.integers(0, len(places) - 1), st.just(None) | VALUES.map(lambda v: [v]))

    def apply(changes):
        result = copy.deepcopy(value)
        for place, new in changes:
            inner = result
            *way, last = places[place]
            try:
                for key in way:
                    inner = inner[key]
                if new:
                    inner[last] = new[0]
                else:
                    del inner[last]
            except (KeyError, IndexError, TypeError):  # an earlier change removed it
                pass
        return Input(result, [(places[place], new) for place, new in changes])

    return st.lists(change, min_size=1, max_size=3).map(apply)


def as_text(value) -> str:
    """JSON as Python writes it, NaN and lone surrogates too."""
    return json.dumps(value)
