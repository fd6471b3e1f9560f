"""Read a YAML file of settings as {dotted key: (value, line)}, so that no line of it is lost.

    train:
      epochs: 3        ->  {"train.epochs": (3, 2)}

PyYAML keeps the last of two equal keys and follows aliases without a limit. Here a key that is written twice is an
error, also as a section and a dotted key, and a file is bounded in size, depth and values.
"""

import typing
from pathlib import Path

import yaml

MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 20, 10_000, 50
MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A file that is not YAML of settings; the message names the line and the fix, but not the file."""


class _Loader(yaml.SafeLoader):
    """Compose nodes within the limits: PyYAML's own recursion would end in a RecursionError."""

    depth = values = 0

    def compose_node(self, parent, index):
        self.depth += 1
        self.values += 1
        _bound(self.depth, self.values, self.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _bound(depth: int, values: int, line: int) -> None:
    if depth > DEEPEST:
        raise YamlError(f"line {line} is nested more than {DEEPEST} deep; write each key in its section")
    if values > MOST_VALUES:
        raise YamlError(f"line {line}: with its aliases the file holds more than {MOST_VALUES:,} values; write fewer")


def _line(node) -> int:
    return node.start_mark.line + 1


class _Reader:
    """Turn composed nodes into settings; counts the values, each alias again."""

    def __init__(self, loader: _Loader):
        self.loader, self.values = loader, 0
        self.settings: dict[str, tuple[object, int]] = {}
        self.lines: dict[str, int] = {}  # of every key and section

    def read(self, node, prefix: str = "", depth: int = 0) -> None:
        """Add every key of a mapping to self.settings."""
        for name, (key, value) in self.entries(node, depth, prefix).items():
            path = prefix + name
            if path in self.lines:
                raise YamlError(_twice(path, self.lines[path], _line(key)))
            self.lines[path] = _line(key)
            if isinstance(value, yaml.MappingNode):
                self.read(value, f"{path}.", depth + 1)
            else:
                self.settings[path] = (self.value(value, depth + 1), _line(key))

    def entries(self, node, depth: int, prefix: str = "") -> dict[str, tuple[typing.Any, typing.Any]]:
        """Return {key: (key node, value node)} of a mapping; its own keys stand before merged ones."""
        self.count(node, depth)
        if node.tag != "tag:yaml.org,2002:map":
            raise YamlError(f"line {_line(node)}: the tag {node.tag} is not used in settings; leave it out")
        own: dict[str, tuple[typing.Any, typing.Any]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"line {_line(key)}: a key must be text, not a list or a mapping")
            if key.value in own:
                raise YamlError(_twice(prefix + key.value, _line(own[key.value][0]), _line(key)))
            own[key.value] = (key, value)
        merge = own.pop("<<") if "<<" in own and own["<<"][0].tag == MERGE else None
        if merge:
            for each in merge[1].value if isinstance(merge[1], yaml.SequenceNode) else [merge[1]]:
                if not isinstance(each, yaml.MappingNode):
                    raise YamlError(f"line {_line(merge[0])}: << must merge mappings")
                own = self.entries(each, depth + 1, prefix) | own
        return own

    def value(self, node, depth: int):
        """Return a value below a key, with lists and mappings inside of lists."""
        self.count(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, depth + 1) for each in node.value]
        if isinstance(node, yaml.MappingNode):
            return {name: self.value(each, depth + 1) for name, (_, each) in self.entries(node, depth + 1).items()}
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            fix = "put it in quotes, or correct it"
            raise YamlError(f"line {_line(node)}: {_short(node.value)} is not a valid {kind}; {fix}") from None

    def count(self, node, depth: int) -> None:
        self.values += 1
        _bound(depth, self.values, _line(node))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _twice(key: str, first: int, second: int) -> str:
    name = key if key.isprintable() else repr(key)
    return f"line {second}: {name} is written twice, first in line {first}; remove one of the two"


def read_settings(file: Path) -> dict[str, tuple[object, int]]:
    """Return {dotted key: (value, line)} of a YAML file, {} if it is empty. Raises YamlError, and OSError as open()."""
    with open(file, "rb") as f:
        content = f.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise YamlError(f"it holds more than {MOST_BYTES:,} bytes, which no settings need")
    try:
        loader = _Loader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise YamlError(f"line {_line(node)} holds a {kind}, not keys and values")
        reader = _Reader(loader)
        reader.read(node)
        return reader.settings
    except YamlError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise YamlError(f"it is not YAML: {' '.join(str(e).split())}") from None
    except (ValueError, IndexError, AttributeError, OverflowError) as e:  # PyYAML's scanner, as at "\UFFFFFFFF"
        raise YamlError(f"it is not YAML: {e}") from None
