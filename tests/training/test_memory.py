"""The verb `memory`."""

import pytest

from tdlm_fast import memory


def test_the_command_prints_it(capsys):
    assert memory.main(["configs/tiny.yaml", "model.layers=1"]) == 0
    out = capsys.readouterr().out
    assert "MB at the peak of a step" in out and "with an evaluation" in out
    assert memory.main(["configs/tiny.yaml", "model.layer=1"]) == 2


def test_more_layers_take_more_and_an_unknown_key_is_one_line(capsys):
    sizes = []
    for layers in (1, 3):
        assert memory.main(["configs/tiny.yaml", f"model.layers={layers}", "--tokens", "400"]) == 0
        line = capsys.readouterr().out
        assert line.startswith("configs/tiny.yaml, diffusion: about ")
        sizes.append(int(line.split("about ")[1].split()[0].replace(",", "")))
    assert sizes[0] < sizes[1]
    assert memory.main(["configs/tiny.yaml", "model.layer=1"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "did you mean model.layers" in err


@pytest.mark.parametrize("tokens", ["0", "-5"])
def test_a_split_without_tokens_is_refused_before_anything_is_traced(tokens, capsys):
    assert memory.main(["configs/tiny.yaml", "--tokens", tokens]) == 2
    assert capsys.readouterr() == ("", f"error: --tokens is {tokens}; it must be at least 1\n")


def test_no_memory_of_the_size_it_estimates_is_taken(capsys):
    """AdamW's fused step has no fake form, so it once ran on real tensors: these would be terabytes."""
    assert memory.main(["configs/tiny.yaml", "model.width=1048576"]) == 0
    assert int(capsys.readouterr().out.split("about ")[1].split(" ")[0].replace(",", "")) > 10**8
