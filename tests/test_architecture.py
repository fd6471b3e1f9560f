"""The rules of docs/architecture.md, read from the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = (
    "demo", "train", "evaluate", "sample", "lm_eval", "export", "compare", "tune", "sweep", "table", "check", "memory",
    "doctor",
)  # fmt: skip
BACKENDS = ("cpu", "triton", "cuda")
# From the bottom of the house to its top: a room imports from its own line and the lines before it.
LEVELS = (
    ("schema",), ("config", "statistics", "yaml_file"), ("cli",), ("kernels",), ("data", "model"), ("objective",),
    ("runs",), ("evaluation",), ("sampling",), ("exchange",), ("training",), ("comparison",), ("scaling",),
    VERBS, ("__main__",),
)  # fmt: skip
TORCH_FREE = ("schema", "config", "cli", "statistics", "yaml_file", "comparison", "scaling", "__main__", *VERBS)


def files() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    modules = {}
    for folder, package in ((ROOT / "tdlm_fast", "tdlm_fast"), (ROOT / "kernels", "tdlm_fast.kernels")):
        for file in sorted(folder.rglob("*.py")):
            if (ROOT / "tdlm_fast" / "kernels") in file.parents:  # a link to kernels/, if someone made one
                continue
            parts = file.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *(p for p in parts if p != "__init__")))] = file
    return modules


FILES = files()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _nodes(tree: ast.AST, inside_functions: bool):
    """Every node that runs, in functions too if asked for; imports for type checkers alone do not run."""
    for child in ast.iter_child_nodes(tree):
        if _is_type_checking(child):
            continue
        yield child
        if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(child, inside_functions)


def imports(module: str, inside_functions: bool = True) -> list[tuple[str, str, int]]:
    """(module, name or "", line) of each import in a module; in `from . import x` a module x is the module."""
    file, entries = FILES[module], []
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _nodes(ast.parse(file.read_text(encoding="utf-8")), inside_functions):
        if isinstance(node, ast.Import):
            entries += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                entries.append((whole, "", node.lineno) if whole in FILES else (base, alias.name, node.lineno))
    return entries


def ours(module: str, **kw) -> list[tuple[str, str, int]]:
    return [entry for entry in imports(module, **kw) if entry[0] in FILES]


def room(module: str) -> str:
    """The part of the house that a module stands in: "kernels.ops", "training", "config", …"""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["kernels"] else parts[:1])


def breaches(rule: str, forbidden) -> None:
    """Fail with every import for which forbidden(module, imported module, imported name) holds."""
    violations = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {name or target}: {rule}"
        for module in FILES
        for target, name, line in ours(module)
        if forbidden(module, target, name)
    ]
    assert not violations, "\n".join(violations)


def test_kernels_import_nothing_of_the_trainer():
    breaches(
        "kernels/ stands alone",
        lambda module, target, name: (
            module.startswith("tdlm_fast.kernels") and not target.startswith("tdlm_fast.kernels")
        ),
    )


def test_ops_import_no_backend_and_backends_no_other_backend():
    def forbidden(module, target, name):
        here, there = room(module).split(".")[-1], room(target).split(".")[-1]
        inside = module.startswith("tdlm_fast.kernels.") and target.startswith("tdlm_fast.kernels.")
        return inside and there in BACKENDS and here != there and (here == "ops" or here in BACKENDS)

    breaches("an op asks kernels/dispatch.py, and a backend registers there", forbidden)


def test_nobody_imports_a_verb():
    breaches("a verb is run, not imported", lambda module, target, name: target.removeprefix("tdlm_fast.") in VERBS)


def test_imports_go_down_only():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}

    def place(module: str) -> int:
        return level[module.split(".")[1]] if "." in module else 0  # the package itself is its lazy names

    breaches("imports go down only", lambda module, target, name: "." in module and place(target) > place(module))


def test_nothing_is_replaced_or_reached_by_its_name():
    """No unittest.mock in the product. Two files import by name: a verb in __main__, Triton's kernels at first use."""
    lazy = ("tdlm_fast.__main__", "tdlm_fast.kernels.triton.register")
    violations = []
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            words = (
                ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute | ast.Name) else ""
            )
            if "unittest" in words or "import_module" in words and module not in lazy:
                violations.append(f"{file.relative_to(ROOT)}:{node.lineno} uses {words}")
    assert not violations, "\n".join(violations)


def test_no_private_name_crosses_a_file():
    breaches(
        "a name that another file uses has no underscore",
        lambda module, target, name: name.startswith("_") and not name.startswith("__"),
    )
    violations = []
    for module, file in FILES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        modules = {target.rpartition(".")[2] for target, name, _ in ours(module) if not name}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                if node.attr.startswith("_") and not node.attr.startswith("__"):
                    violations.append(f"{file.relative_to(ROOT)}:{node.lineno} uses {node.value.id}.{node.attr}")
            if isinstance(node, ast.Attribute) and node.attr == "_init_fn":
                violations.append(
                    f"{file.relative_to(ROOT)}:{node.lineno} uses the private {node.attr} of PyTorch's ops"
                )
    assert not violations, "\n".join(violations)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (Tarjan's strongly connected components of two or more)."""
    index, low, stack, groups = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = stack[stack.index(v) :]
            del stack[stack.index(v) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for v in graph:
        if v not in index:
            visit(v)
    return groups


def test_no_circles():
    graph = {module: {target for target, _, _ in ours(module) if target != module} for module in FILES}
    del graph["tdlm_fast"]  # its lazy names are for users; no file imports it
    graph = {module: targets & graph.keys() for module, targets in graph.items()}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert not circles(graph), f"these import each other: {circles(graph)}"


def loaded(module: str) -> set[str]:
    """Every module that importing this one runs, ours and others', by its imports outside of functions."""
    seen, left = set(), [module]
    while left:
        m = left.pop()
        if m in seen:
            continue
        seen.add(m)
        if m in FILES:
            above = [m[:i] for i, c in enumerate(m) if c == "."]  # a package's __init__ runs first
            left += [target for target, _, _ in imports(m, inside_functions=False)] + above
    return seen


@pytest.mark.parametrize("module", [m for m in FILES if room(m) in TORCH_FREE])
def test_what_answers_at_once_loads_no_torch(module):
    heavy = {name for name in loaded(module) if name.split(".")[0] in ("torch", "triton", "datasets", "tiktoken")}
    assert not heavy, f"{FILES[module].relative_to(ROOT)} loads {', '.join(sorted(heavy))} before anything is checked"


def test_the_verbs_are_all_there_and_answer_for_themselves():
    text = subprocess.run([sys.executable, "-m", "tdlm_fast"], capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0].replace("-", "_") for line in text.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(VERBS) and all(f"tdlm_fast.{verb}" in FILES for verb in VERBS)


def test_functions_and_signatures_are_of_a_size():
    """60 lines and 10 arguments at most; kernels take what they are launched with, and ops what their schema lists."""
    violations = []
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
                if lines > 60:
                    violations.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
                if arguments > 10 and not module.startswith("tdlm_fast.kernels"):
                    violations.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name} takes {arguments} arguments")
    assert not violations, "\n".join(violations)


def test_the_page_states_the_sizes_of_today():
    longest_file = max(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES.values())
    longest_function = max(
        node.end_lineno - node.lineno + 1
        for file in FILES.values()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    )
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"| longest function, lines | 163 | {longest_function} |" in page
    assert f"| longest file, lines | 475 | {longest_file} |" in page


def test_the_page_names_every_file():
    """Every module stands in the drawing of the house, under the name of its room."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = page.partition("## The house")[2].partition("```")[2].partition("```")[0]
    words = set(house.replace("/", " ").replace(".", " ").replace(":", " ").split())
    missing = [m for m in FILES if not m.startswith("tdlm_fast.kernels.") and m.rpartition(".")[2] not in words]
    assert not missing, f"docs/architecture.md does not draw {', '.join(missing)}"


def test_every_module_has_a_test_file_of_its_name():
    """tests/ mirrors the rooms: training/step.py has tests/training/test_step.py. A verb's file may be in any room."""
    missing = []
    for module, file in FILES.items():
        if file.name == "__init__.py":
            continue
        name = f"test_{file.stem.strip('_')}.py"  # __main__.py has test_main.py
        folder = ROOT / "tests" / Path(*module.split(".")[1:-1])
        verb = room(module) in VERBS and list((ROOT / "tests").rglob(name))
        if not ((folder / name).is_file() or verb):
            missing.append(f"{file.relative_to(ROOT)} has no {(folder / name).relative_to(ROOT)}")
    assert not missing, "\n".join(missing)
