"""Print the races of ops.py, and write each to the file of --figures as soon as it ends."""

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--figures", type=Path, help="write the figures of the benchmarks to this JSON file")
    parser.addoption("--rounds", type=int, help="per race (default: enough for steady medians)")


def place(name: str) -> int:
    """The place of a race by its case: tiny, then the others, then the sweeps over widths and rows."""
    case = name.partition("[")[2]
    return 0 if case.startswith("tiny") else 2 if case.startswith(("D ", "N ")) else 1


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    ours = iter(sorted((item for item in items if item.path.parent == folder), key=lambda item: place(item.name)))
    items[:] = [next(ours) if item.path.parent == folder else item for item in items]


def _figure(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _races(config) -> list:
    session = getattr(config, "_benchmarksession", None)
    return [b for b in session.benchmarks if "sides" in b.extra_info] if session else []


@pytest.fixture(autouse=True)
def figures_are_written_after_each_race(request):
    yield
    path = request.config.getoption("--figures")
    if not path:
        return
    from tdlm_fast.runs.device import pick_device, versions
    from tdlm_fast.runs.files import write_json

    figures = versions(pick_device("auto")) | {"torch": torch.__version__, "races": {}}
    for race in _races(request.config):
        sides = {n: {k: _figure(v) for k, v in s.items()} for n, s in race.extra_info["sides"].items()}
        limits = {k: _figure(v) for k, v in race.extra_info["limits"].items()}
        figures["races"][race.name.removeprefix("test_")] = {"sides": sides, "limits": limits}
    write_json(path, figures, indent=1)


def pytest_terminal_summary(terminalreporter, config):
    for race in _races(config):
        sides, limits = race.extra_info["sides"], race.extra_info["limits"]
        terminalreporter.section(race.name.removeprefix("test_"))
        rate = f"{limits['flops'] / 1e12:.3g} TFLOP/s of a large product, {limits['bytes'] / 1e9:.3g} GB/s of a copy"
        terminalreporter.write_line(f"limits, measured in the same rounds: {rate}")
        best = sides["tdlm_fast"]["ms"]
        for name, s in sides.items():
            if "ms" not in s:
                terminalreporter.write_line(f"{name:44} absent: {s['note']}")
                continue
            rate = f"{s['tflop_per_s']:8.3g} TFLOP/s" if "tflop_per_s" in s else f"{s['gb_per_s']:8.3g} GB/s   "
            memory = "" if s.get("peak_mb") is None else f"{s['peak_mb']:9,.0f} MB"
            more = f"{s['ms'] / best:7.2f} x ours {memory} {s.get('note', '')}"
            terminalreporter.write_line(f"{name:44} {s['ms']:9.3f} ms {rate} {s['share']:6.1%} of the limit {more}")
