import weakref

import pytest

from llmtap.core.errors import ApiError, error_body
from llmtap.lane.refusals import ClientGone, Crowded, HeadTooLarge, NotSupported, TooSlow, forget


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (HeadTooLarge, 431, "head_too_large"),
        (TooSlow, 408, "request_timeout"),
        (NotSupported, 501, "not_supported"),
        (Crowded, 503, "too_many_connections"),
    ],
)
def test_each_is_an_api_error_of_its_own(kind: type[ApiError], status: int, code: str) -> None:
    error = kind("why")
    assert (error.status, error.code) == (status, code)
    assert code.encode() in error_body(error, "openai")


def test_a_client_that_left_is_worded_as_mitmproxy_does() -> None:
    import inspect

    from mitmproxy.proxy.layers.http import _http1

    assert f'f"{ClientGone()}"' in inspect.getsource(_http1)


def test_forget_lets_go_of_what_tracebacks_hold() -> None:
    class Held:
        pass

    def fail() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        try:
            raise ValueError(str(held))
        except ValueError:
            raise ClientGone from None

    alive: list[weakref.ref[Held]] = []
    caught: list[BaseException] = []
    try:
        fail()
    except ClientGone as error:
        caught.append(error)
    assert alive[0]() is not None
    forget(caught[0])
    assert alive[0]() is None and caught[0].__context__ is None
