"""Train a tiny language model: `python -m tdlm_fast.train configs/tiny.yaml [key=value …] [--resume]`.

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/{last,best}.safetensors, samples.txt, summary.json.
"""

import os
import sys

from . import config as settings
from .cli import command, exit_codes, out_of_memory, own_folder, several, verb, verb_parser
from .config import at_least
from .runs.files import LAST
from .runs.folder import folder_of
from .training.session import train

LOWER = "train.batch_size (or raise train.accumulation), eval.batch_size, model.seq_len, model.width or model.layers"


@exit_codes(prints=False)
def main(argv=None) -> int:
    p = verb_parser("train", __doc__, keys=True)
    p.add_argument("config", help="YAML file, as configs/tiny.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--resume", action="store_true", help="resume the run in its folder, if there is one")
    p.add_argument("--extend", type=int, metavar="STEPS", help="train a finished run further, to STEPS steps in all")
    args = p.parse_intermixed_args(argv)
    at_least(args, {"extend": 1}, {}, "--")
    further = ["--extend", args.extend] if args.extend else ["--resume"]
    resume = command("train", args.config, *args.overrides, *further)
    folder, shown = None, False

    def kept() -> str:
        has = folder and (folder / LAST).is_file()
        return f"the last checkpoint is intact; to resume: {resume}" if has else "no checkpoint was saved yet"

    try:
        config = settings.load(args.config, args.overrides)
        folder = folder_of(config, args.config)
        own_folder(folder, "run.dir")
        if not several() or os.environ["RANK"] == "0":
            print(f"{args.config}: {config.objective}, into {folder}", flush=True)  # PyTorch takes seconds to load
        shown = True
        summary = train(config, folder, args.resume, args.extend or 0)
    except OSError as e:
        if folder and not shown:  # the output is full or closed, and not the folder
            raise
        raise settings.ConfigError(f"{e.filename or folder}: {e.strerror or e}; {kept()}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept()) from None
    except settings.NonFinite as e:
        raise settings.NonFinite(f"{e}; {kept()}") from None
    except (MemoryError, RuntimeError) as e:
        if not (full := out_of_memory(e)):
            raise
        raise settings.ConfigError(f"{full}; lower {LOWER}; {kept()}") from None
    memory = f", peak memory {summary['peak_memory_mb']:,.0f} MB" if summary["peak_memory_mb"] else ""
    for name in ("valid", "test"):
        score, error = summary[name], f" ± {summary[name]['stderr']:.4f}" if summary[name]["samples"] else ""
        nats, bits = f"{score['nats_per_token']:.4f}{error} nats/token", score["bits_per_byte"]
        of_text = "" if bits is None else f", {bits:.4f} bits/byte"
        print(f"{name:5}  {nats}, ppl {score['ppl']:.2f}{of_text} ({score['bound']})")
        if known := summary.get("source", {}).get(name):
            least, above = known["nats_per_token"], score["nats_per_token"] - known["nats_per_token"]
            print(f"       {above:+.4f} from the source itself, {least:.4f}; its entropy is {known['entropy']:.4f}")
    print(f"best   these are of the weights of step {summary['best_step']}, of {summary['steps']} trained")
    start = f", after a start of {summary['startup_seconds']:,.1f} s" if "startup_seconds" in summary else ""
    print(f"speed  {summary['tokens_per_s']:,.0f} tokens/s over {summary['seconds']:,.1f} s{start}{memory}")
    if summary["note"]:
        print(f"NOTE   {summary['note']}")
    print(f"run    {folder}")
    if not summary["finished"]:
        print(f"stopped early; to resume: {resume}")
        return 130
    tokens = max(1, min(64, config.model.seq_len // 2))
    prompt = "ab" if "source" in summary else "The "
    print("sample " + command("sample", folder, "--prompt", prompt, "--tokens", tokens))
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
