"""The cost of a plan, before it is trained."""

import pytest

from tdlm_fast.scaling import cost, plan


def test_cells_are_counted_and_added_up(plan_file):
    rows = cost.costs(plan.read(plan_file))
    cells, total = (
        [dict(zip(rows[0], row, strict=True)) for row in rows[1:-1]],
        dict(zip(rows[0], rows[-1], strict=True)),
    )
    assert [c["steps"] for c in cells] == ["8", "8", "16", "16"]  # 256 / 16 rows, 8 a batch, 4 epochs
    assert cells[0]["of the blocks"] == f"{4 * 16**2 + 3 * 16 * 16 + 2 * 16:,}"
    assert cells[0]["parameters"] == f"{4 * 256 + 3 * 256 + 32 + 16 + 16 * (258 + 257):,}"
    work = [float(c["PFLOP"]) for c in cells]
    assert work[2] == pytest.approx(2 * work[0], rel=0.01) and work[1] > work[0]  # the head sees half the tokens
    assert float(total["PFLOP"]) == pytest.approx(sum(work), rel=0.01)
    assert all(float(c["hours"]) > 0 for c in cells)
