"""One entry: `python -m tdlm_fast` lists the verbs and runs them, and the package offers what its page says."""

import subprocess
import sys

import pytest

import tdlm_fast
from tdlm_fast import __main__ as entry


def test_without_a_verb_the_verbs_are_listed(capsys):
    assert entry.main([]) == entry.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in entry.VERBS)


def test_a_wrong_verb_is_one_line_with_the_nearest_one(capsys):
    assert entry.main(["tran"]) == 2 and entry.main(["xyz"]) == 2
    near, far = capsys.readouterr().err.splitlines()
    assert near == "error: 'tran' is not a verb; did you mean train?" and far.endswith(", memory, doctor")


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_a_verb_gets_the_words_after_it(verb, capsys):
    assert entry.main([verb, "no-such.yaml"]) == 2
    assert "no-such.yaml: no such file" in capsys.readouterr().err


def test_the_version_is_that_of_the_installation(capsys):
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tdlm_fast {tdlm_fast.__version__}\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tdlm_fast.nothing  # noqa: B018


def test_a_run_is_loaded_by_its_path_as_text(trained):
    config, tokenizer, model, state = tdlm_fast.load_run(str(trained[0]), "last", "cpu")
    assert config.train.max_steps == state["step"] == 2 and not model.training and tokenizer.vocab == 257


def test_the_list_of_verbs_does_not_wait_for_heavy_imports():
    code = "import sys; from tdlm_fast.__main__ import main; main([]); print({'torch', 'numpy'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
