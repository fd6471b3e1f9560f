"""The doctor names what serves each op."""

from tdlm_fast import doctor


def test_doctor_names_what_serves_each_op(capsys, references):
    assert doctor.main([]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"lce_forward", "corrupt", "attention", "embedding_backward"} <= rows.keys()
    assert rows["attention"] == "PyTorch's SDPA" and rows["corrupt"] == "reference (chosen)"
