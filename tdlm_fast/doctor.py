"""Print what serves each op on this machine, and why: `python -m tdlm_fast.doctor`."""

import sys

from .cli import announce, exit_codes, verb, verb_parser


@exit_codes()
def main(argv=None) -> None:
    p = verb_parser("doctor", __doc__)
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    announce("loading PyTorch")
    from .runs.device import chains, kernels, pick_device, versions

    device = pick_device(a.device)
    ran, served = versions(device), chains(device)
    graph = "one CUDA graph" if device.type == "cuda" else "eager: CUDA graphs need a GPU"
    rows = {"device": ran["device"]} | {name: v or "not installed" for name, v in ran["versions"].items()}
    rows |= {"step": graph, "cuda": kernels().cuda.library.describe()}
    asked = kernels().dispatch.chosen(device.type) == "reference"
    alone = "reference (chosen)" if asked else "reference (no kernel is written for this device)"
    for op, links in served.items():  # in the order in which they are tried
        chain = ", ".join(f"{backend} ({why})" if why else backend for backend, why in links)
        rows[op] = alone if chain == "reference" else chain
    for name, value in rows.items():
        print(f"{name:25}{value}")


if __name__ == "__main__":
    sys.exit(verb(main))
