"""The summary of `make test` counts what pytest counted, and no failed tier passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiers


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("===== 3 passed in 0.12s =====\n", {"passed": 3}),
        ("31 passed, 1 warning in 0.22s", {"passed": 31, "warning": 1}),
        (
            "= 2 passed, 1 deselected, 2 errors in 1.00s =",
            {"passed": 2, "deselected": 1, "error": 2},
        ),
        (
            "\x1b[31m= \x1b[1m1 failed\x1b[0m, 2 passed in 61.20s (0:01:01) =",
            {"failed": 1, "passed": 2},
        ),
        ("the agent said: 5 passed in my head", {}),
        ("FAILED tests/unit/test_a.py::test_b - 2 failed in 3s", {}),
        ("", {}),
    ],
)
def test_only_a_closing_line_counts(line: str, counts: dict[str, int]) -> None:
    """Counts come from the last line of a pytest run, coloured or not, quiet or not."""
    assert tiers.count(line) == counts


def test_a_failed_tier_fails_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other tiers run all the same, and the last line counts those of all."""
    (tmp_path / "Makefile").write_text(
        "test-one:\n\t@echo '= 2 passed in 0.10s ='\n"
        "test-two:\n\t@false\n"
        "test-three:\n\t@echo '= 1 failed, 3 passed in 0.10s ='; false\n"
    )
    monkeypatch.chdir(tmp_path)
    assert tiers.main(["one", "two", "three"]) == 1
    *_, said, closing = capsys.readouterr().out.splitlines()
    assert said == "ran 3 tiers; FAILED: two, three"
    assert tiers.count(closing) == {"failed": 1, "passed": 5, "error": 1}
