"""The numbers of policies, one after the other."""

from __future__ import annotations

import itertools

import pytest

from agentwatch.daemon.policy import following


@pytest.mark.parametrize("last", [0, 65_534, 131_070, (1 << 32) - 65_538])
def test_no_policy_has_a_number_that_is_none_to_a_program(last: int) -> None:
    """Programs keep the lower 16 bits of it, where 0 says that nothing is known of them."""
    numbers = list(
        itertools.accumulate(range(3), lambda before, _: following(before), initial=last)
    )
    assert numbers == sorted(set(numbers))
    assert all(number & 0xFFFF for number in numbers[1:])
    assert numbers[-1] - last <= 4
