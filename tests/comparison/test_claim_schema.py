"""Claim files: the installed ones are sound, and each error is one line that names the file and the key."""

import json
import math
from pathlib import Path

import pytest

from tdlm_fast import check, compare
from tdlm_fast.comparison import claim_schema
from tdlm_fast.config import ConfigError


def changed(tmp_path, change, name="tdlm-v1.2"):
    """A copy of an installed claim file after change(contents)."""
    content = json.loads(claim_schema.installed()[name].read_text(encoding="utf-8"))
    change(content)
    file = tmp_path / "claims.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_the_installed_files_are_found_by_name_and_by_path(tmp_path):
    assert list(claim_schema.installed()) == ["tdlm-v1.2", "parameter-golf-1106"]
    for name, file in claim_schema.installed().items():
        assert claim_schema.read(Path(name)) == claim_schema.read(file)
    assert claim_schema.read() == claim_schema.read(Path("tdlm-v1.2"))
    same = changed(tmp_path, lambda c: None)
    assert claim_schema.read(same) == claim_schema.read()


def test_the_page_of_the_schema_names_every_key_and_kind():
    page = (Path(__file__).parents[2] / "docs" / "claim-files.md").read_text(encoding="utf-8")
    s = claim_schema
    keys = {*s.FILE, *s.FILE_MAY, *s.EVERY, *s.EVERY_MAY, *s.DERIVED, *s.BESIDE, *s.KINDS}
    missing = [key for key in (*keys, *(k for needed in s.KINDS.values() for k in needed)) if f"`{key}`" not in page]
    assert not missing, f"docs/claim-files.md does not describe {', '.join(sorted(set(missing)))}"


WRONG = {
    "source is missing; it must be text": lambda c: c.pop("source"),
    "text is missing": lambda c: c.update(text=None),
    'runs is ""; it must be text': lambda c: c.update(runs=""),
    "figure is not a key; did you mean figures?": lambda c: c.update(figure={}),
    "figures is": lambda c: c.update(figures={"a": "1"}),
    "figures.Ppl is not a name": lambda c: c.update(figures={"Ppl": 1}),
    "settings: unknown key optim.lrr; did you mean optim.lr?": lambda c: c["settings"].update({"optim.lrr": 1}),
    "settings: optim.lr is 'much'; it must be a finite number": lambda c: c["settings"].update({"optim.lr": "much"}),
    "parameters is 2.5; it must be a whole number above 0": lambda c: c.update(parameters=2.5),
    "implementation is [1]; it must be a list of texts": lambda c: c.update(implementation=[1]),
    "derived[0].value is 1.6; it must be a number in quotes": lambda c: c["derived"][0].update(value=1.6),
    "derived[1].id is 'test ratio', as of another": lambda c: c["derived"][1].update(id="test ratio"),
    "claims[1].id is 'test', as of another": lambda c: c["claims"][1].update(id="test"),
    'claims[1].kind is "speed"; it must be one of loss, bits, accuracy': lambda c: c["claims"][1].update(kind="speed"),
    "claims[1].ratio is missing; it must be a number above 0": lambda c: c["claims"][1].pop("ratio"),
    "claims[1].at is -1; it must be a step, “best” or “test”": lambda c: c["claims"][1].update(at=-1),
    "claims[1].at is true": lambda c: c["claims"][1].update(at=True),
    "claims[2].computation is missing": lambda c: c["claims"][2].pop("computation"),
    "claims[5].diffusion is 50; it must be a number from 0 to 1": lambda c: c["claims"][5].update(diffusion=50),
    "claims[5].device is not a key": lambda c: c["claims"][5].update(device="a GPU"),
    'claims holds no claim with the id "test"': lambda c: c["claims"].pop(0),
    'claims[1].kind is ["loss"]; it must be one of': lambda c: c["claims"][1].update(kind=["loss"]),
    "claims[1].at is 1000000": lambda c: c["claims"][1].update(at=10**400),
    "claims[1].ratio is 1000000": lambda c: c["claims"][1].update(ratio=10**400),
    "claims[1].ratio is Infinity": lambda c: c["claims"][1].update(ratio=math.inf),
    "known_texts is": lambda c: c.update(known_texts={"0": 1}),
    "figures is NaN": lambda c: c.update(figures=math.nan),
    "beside.bits_per_byte is": lambda c: c.update(beside={"source": "x", "bits_per_byte": {"bound": [1]}}),
    "beside.source is missing": lambda c: c.update(beside={"bits_per_byte": {}}),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_error_is_one_line_that_names_the_file_and_the_key(message, tmp_path, capsys):
    file = changed(tmp_path, WRONG[message])
    with pytest.raises(ConfigError) as error:
        claim_schema.read(file)
    assert str(error.value).startswith(f"{file}: {message}") and "docs/claim-files.md" in str(error.value)
    runs = [
        "--from",
        "bench/results/wikitext-2-compare/compare.json",
        "--sequences",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    for verb, args in ((compare, ["--claims", str(file), *runs]), (check, ["--claim", str(file)])):
        assert verb.main(args) == 2
        assert capsys.readouterr().err == f"error: {error.value}\n"
    assert not (tmp_path / "out").exists()


def test_files_that_hold_no_claims_are_refused(tmp_path):
    for text, message in (("{", "is not JSON"), ("[]", "it holds no JSON object"), ("[" * 10_000, "is not JSON")):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ConfigError, match=message):
            claim_schema.read(tmp_path / "file")
    with pytest.raises(ConfigError, match="absent: no such file; give a claim file .* or one of tdlm-v1.2, parameter"):
        claim_schema.read(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read"):
        claim_schema.read(tmp_path)
