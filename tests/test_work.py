"""A plain product is the same work in every convention."""

from __future__ import annotations

from toolkit.work import BACKWARD, Work


def test_a_plain_product_is_needed_run_and_squared_alike() -> None:
    work = Work.dense("head", 7 * 16 * 50)
    assert work == Work("head", needed=5600, square=5600, computed=5600, computed_backward=BACKWARD)


def test_backward_is_a_product_for_each_operand_s_gradient() -> None:
    assert BACKWARD == 2
