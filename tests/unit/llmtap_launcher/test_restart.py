from llmtap_launcher.restart import History, RestartPolicy, after_exit

POLICY = RestartPolicy(crash_limit=100, startup_limit=100)


def test_waits_double_up_to_the_limit() -> None:
    history, now, waits = History(), 0.0, []
    for _ in range(8):
        decision = after_exit(POLICY, history, now, ready_since=now)
        assert decision.delay_s is not None
        waits.append(decision.delay_s)
        history, now = decision.history, now + decision.delay_s
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_healthy_minute_forgets_the_past() -> None:
    history = History(exits=(0.0, 1.0, 3.0), was_ready=True)
    assert after_exit(POLICY, history, 70.0, ready_since=11.0).delay_s == 8
    decision = after_exit(POLICY, history, 71.0, ready_since=11.0)
    assert decision.delay_s == 1
    assert decision.history == History(exits=(71.0,), was_ready=True)


def test_crash_loop_ends_the_attempts() -> None:
    policy = RestartPolicy(crash_limit=3, crash_window_s=60, startup_limit=100)
    history = History(exits=(0.0, 59.0), was_ready=True)
    looping = after_exit(policy, history, 60.0, ready_since=60.0)
    assert looping.delay_s is None
    assert looping.reason == "ended 3 times within 60 s"
    assert after_exit(policy, history, 60.5, ready_since=60.0).delay_s == 4  # the first one is too long ago to count


def test_never_ready_gives_up_but_once_ready_goes_on() -> None:
    policy = RestartPolicy(startup_limit=2)
    slow = History(exits=(0.0,))
    decision = after_exit(policy, slow, 500.0, ready_since=None)
    assert (decision.delay_s, decision.reason) == (None, "ended 2 times without getting ready")
    assert after_exit(policy, History(exits=(0.0,), was_ready=True), 500.0, ready_since=None).delay_s == 2
    assert after_exit(RestartPolicy(startup_limit=1), History(), 1.0, None).reason == "ended once without getting ready"


def test_a_very_long_streak_stays_a_number() -> None:
    history = History(exits=tuple(float(i * 1000) for i in range(3000)), was_ready=True)
    assert after_exit(POLICY, history, 3_000_000.0, ready_since=2_999_999.0).delay_s == 30
