"""Models of others, from folders of transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

from tdlm_fast.config import ConfigError
from tdlm_fast.exchange import foreign


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ConfigError, match="this needs the package transformers .*: pip install transformers"):
        foreign.transformers()


@pytest.mark.slow
def test_transformers_is_imported_from_the_root_of_the_project():
    """There a folder is named kernels, as an optional package of theirs."""
    pytest.importorskip("tokenizers", reason="needs transformers 5: pip install tdlm_fast[export]")
    code = "from tdlm_fast.exchange.foreign import transformers; transformers().LlamaForCausalLM"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
