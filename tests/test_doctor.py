"""The doctor names what serves each op."""

from tdlm_fast import doctor


def test_doctor_names_what_serves_each_op(capsys, references):
    assert doctor.main([]) == 0
    said = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"lce_forward", "corrupt", "attention", "embedding_backward"} <= said.keys()
    assert said["attention"] == "PyTorch's SDPA" and said["corrupt"] == "reference (chosen)"
