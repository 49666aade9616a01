from llmtap.lane.limits import LaneLimits


def test_connections_are_looked_over_often_enough_for_the_shortest_time_and_once_a_second_at_most() -> None:
    assert LaneLimits().tick_s == 1.0
    assert LaneLimits(head_timeout_s=0.4).tick_s == 0.1
    assert LaneLimits(pool_idle_s=0.0).tick_s == 0.02


def test_idle_backend_connections_go_before_uvicorn_closes_them() -> None:
    limits = LaneLimits()
    assert limits.pool_idle_s < 5.0
    assert limits.pool_idle_s + limits.tick_s <= 5.0
