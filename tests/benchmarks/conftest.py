"""Bounds and what was measured, side by side, at the end of `make benchmarks`."""

import pytest

_ROWS: list[tuple[str, float, str, float]] = []


@pytest.fixture
def report_bound():
    """`report_bound(what, measured, bound)` keeps a row for the table and fails beyond the bound.

    With `at_least=True` the bound is a lower one.
    """

    def report(what: str, measured: float, bound: float, at_least: bool = False) -> None:
        _ROWS.append((what, measured, "≥" if at_least else "≤", bound))
        assert measured >= bound if at_least else measured <= bound, (what, measured, bound)

    return report


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    terminalreporter.section("bound and measured")
    width = max(len(what) for what, *_ in _ROWS)
    for what, measured, sign, bound in _ROWS:
        missed = measured < bound if sign == "≥" else measured > bound
        terminalreporter.write_line(
            f"{what:<{width}}  measured {measured:<10.4g} bound {sign} {bound:<8.4g} "
            f"{'MISSED' if missed else 'met'}"
        )
