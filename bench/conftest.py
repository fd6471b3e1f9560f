"""Prints the races of bench_kernels.py, and writes them where --figures says."""

import json
from pathlib import Path

import torch


def pytest_addoption(parser):
    parser.addoption("--figures", type=Path, help="write the figures of the benchmarks to this JSON file")


def _figure(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    races = [b for b in session.benchmarks if "sides" in b.extra_info] if session else []
    if not races:
        return
    from tdlm_fast.doctor import pick_device, versions

    found = versions(pick_device("auto")) | {"torch": torch.__version__, "races": {}}
    for race in races:
        sides = {n: {k: _figure(v) for k, v in s.items()} for n, s in race.extra_info["sides"].items()}
        limits = {k: _figure(v) for k, v in race.extra_info["limits"].items()}
        found["races"][race.name.removeprefix("test_")] = {"sides": sides, "limits": limits}
        terminalreporter.section(race.name.removeprefix("test_"))
        best = sides["tdlm_fast"]["ms"]
        for name, s in sides.items():
            if "ms" not in s:
                terminalreporter.write_line(f"{name:44} absent: {s['note']}")
                continue
            rate = f"{s['tflop_per_s']:8.3g} TFLOP/s" if "tflop_per_s" in s else f"{s['gb_per_s']:8.3g} GB/s   "
            memory = "" if s.get("peak_mb") is None else f"{s['peak_mb']:9,.0f} MB"
            more = f"{s['ms'] / best:7.2f} x ours {memory} {s.get('note', '')}"
            terminalreporter.write_line(f"{name:44} {s['ms']:9.3f} ms {rate} {s['share']:6.1%} of the limit {more}")
    if path := config.getoption("--figures"):
        path.write_text(json.dumps(found, indent=1) + "\n")
