"""Export a run to a folder: load it, write its files in the format that was asked for, and the card beside them."""

from pathlib import Path

from safetensors import SafetensorError

from ..config import ConfigError
from ..runs.checkpoint import check_finite
from ..runs.files import write_beside
from ..runs.load import load_run
from . import gguf_file, hugging_face
from .card import card, figures
from .weights import check_shape


def metadata(config, state: dict, known: dict) -> dict[str, str]:
    """Return what an exported file says of itself, as text: the objective, its figures, and a hash of the weights."""
    about = {"made_by": "tdlm_fast", "objective": config.objective, "step": state["step"], "weights": state["weights"]}
    return {k: str(v) for k, v in (about | known).items() if v is not None}


def export(run: Path, folder: Path, to: str, which: str | None = None) -> list[Path]:
    """Write run to folder as "hf" or "gguf" and return the files; which is the checkpoint, as in load_run.

    Raises ConfigError for a model that has no native class there and where folder cannot be written, NonFinite where
    weights are nan or infinite.
    """
    if to == "gguf":
        gguf_file.package()
    config, tokenizer, model, state = load_run(run, which, "cpu")
    check_shape(config)
    check_finite(model)
    # the figures are those of the best weights, and say nothing about others
    known = figures(run) if which != "last" else {}
    about = metadata(config, state, known)
    text = card(config, known, to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to == "hf":
            hugging_face.write(folder, config, model, tokenizer, about)
        else:
            gguf_file.write(folder / f"{run.resolve().name}.gguf", config, model, tokenizer, about)
        write_beside(folder / "README.md", lambda p: p.write_text(text, encoding="utf-8"))
    except (SafetensorError, OSError) as e:
        raise ConfigError(f"--out {folder} cannot be written ({_why(e)}); give a folder on another disk") from None
    return sorted(folder.iterdir())


def _why(e: Exception) -> str:
    """Return why a file could not be written. safetensors and NumPy say it in words of their own."""
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    return "No space left on device" if isinstance(e, OSError) or "os error 28" in str(e) else str(e).splitlines()[0]
