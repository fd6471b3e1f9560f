"""Write a run for other tools: `python -m tdlm_fast.export RUN --to hf|gguf [--out FOLDER]`.

hf: a folder for transformers' native classes, with tokenizer and model card. gguf: a file for llama.cpp. Both are read
by other programs without code of ours (exchange/hugging_face.py, exchange/gguf_file.py).
"""

import sys

from .cli import announce, exit_codes, not_taken, path, verb, verb_parser
from .config import ConfigError


@exit_codes(prints=False)
def main(argv=None) -> None:
    p = verb_parser("export", __doc__)
    p.add_argument("run", type=path, help="run folder")
    p.add_argument("--to", choices=("hf", "gguf"), required=True, help="Hugging Face's transformers, or llama.cpp")
    p.add_argument("--out", type=path, help="a new or empty folder (default: RUN/hf or RUN/gguf)")
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    a = p.parse_args(argv)
    folder = a.out or a.run / a.to
    not_taken(folder, "--out")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--out {folder} holds files already; give a new or empty folder")
    announce(f"loading {a.run}")
    from .exchange.export import export  # loads torch

    for file in export(a.run, folder, a.to, a.checkpoint):
        print(file)


if __name__ == "__main__":
    sys.exit(verb(main))
