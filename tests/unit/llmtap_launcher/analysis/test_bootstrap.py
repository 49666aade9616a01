"""The bootstrap: short cuts draw what whole resamples would, intervals hold what they promise."""

from __future__ import annotations

import statistics
from random import Random

import pytest

from llmtap_launcher.analysis import bootstrap
from llmtap_launcher.analysis.bootstrap import Draw

_DICE = Random(3)
VALUES = sorted(_DICE.lognormvariate(5, 0.6) for _ in range(150))


def spread(draw: Draw, n: int = 3000) -> tuple[float, float]:
    found = [draw() for _ in range(n)]
    return statistics.fmean(found), statistics.stdev(found)


def whole(statistic: object, n: int = 3000) -> tuple[float, float]:
    """What drawing whole resamples gives."""
    dice = Random(4)
    return spread(lambda: statistic(dice.choices(VALUES, k=len(VALUES))), n)  # type: ignore[operator]


def test_quantiles_as_of_whole_resamples() -> None:
    for p, k in ((50, 75), (95, 143)):
        quick = spread(bootstrap.quantile(VALUES, p, Random(1)))
        slow = whole(lambda sample, k=k: sorted(sample)[k - 1])
        assert quick[0] == pytest.approx(slow[0], rel=0.01)
        assert quick[1] == pytest.approx(slow[1], rel=0.1)


def test_means_as_of_whole_resamples() -> None:
    quick, slow = spread(bootstrap.mean(VALUES, Random(1)), 1500), whole(statistics.fmean, 1500)
    assert quick[0] == pytest.approx(slow[0], rel=0.01)
    assert quick[1] == pytest.approx(slow[1], rel=0.1)


def test_means_of_many_values_are_as_sure_as_their_number() -> None:
    dice = Random(7)
    many = [dice.gauss(10, 3) for _ in range(16_000)]
    _, width = spread(bootstrap.mean(many, Random(1)), 300)
    assert width == pytest.approx(3 / 16_000**0.5, rel=0.15)


def test_rates() -> None:
    average, width = spread(bootstrap.rate(30, 1000, Random(1)))
    assert average == pytest.approx(0.03, rel=0.02)
    assert width == pytest.approx((0.03 * 0.97 / 1000) ** 0.5, rel=0.1)
    assert bootstrap.rate(0, 10, Random(1))() == 0


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Medians of two lognormals whose true difference is known."""
    held, rounds = 0, 150
    truth = 120.0 - 100.0
    for seed in range(rounds):
        dice = Random(seed)
        a, b = (sorted(middle * dice.lognormvariate(0, 0.5) for _ in range(120)) for middle in (100, 120))
        delta = statistics.median(b) - statistics.median(a)
        found = bootstrap.difference(delta, bootstrap.quantile(a, 50, dice), bootstrap.quantile(b, 50, dice), 300)
        held += found.low <= truth <= found.high
    assert 0.88 <= held / rounds <= 1


def test_the_same_seed_gives_the_same() -> None:
    def once() -> bootstrap.Interval:
        dice = Random(9)
        return bootstrap.mean_difference(VALUES, [value * 1.5 for value in VALUES], dice)

    found = once()
    assert found == once()
    assert found.differs
    assert found.low < found.delta < found.high
    assert not bootstrap.mean_difference(VALUES, VALUES[::-1], Random(1)).differs
