from llmtap_launcher.pip_config import parse, uv_variables

LISTING = """
global.cert='/etc/ca.crt'
global.find-links='/global'
global.extra-index-url='one two'
install.find-links='/install'
:env:.find-links='/a\\n/b'
:env:.default-timeout='180'
freeze.find-links='/other'
WARNING: something
global.broken=unquoted words
"""


def test_parse_knows_pips_precedence() -> None:
    config = parse(LISTING)
    assert config == {
        "cert": "/etc/ca.crt",
        "find-links": "/a\n/b",
        "extra-index-url": "one two",
        "default-timeout": "180",
    }
    assert parse("install.index-url='x'\nglobal.index-url='y'")["index-url"] == "x"
    assert parse("") == {}


def test_uv_is_told_the_same() -> None:
    assert uv_variables(parse(LISTING), {}) == {
        "UV_INDEX": "one two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/a,/b",
        "SSL_CERT_FILE": "/etc/ca.crt",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_what_the_user_set_for_uv_stays() -> None:
    variables = uv_variables({"index-url": "x", "extra-index-url": "y"}, {"UV_DEFAULT_INDEX": "z", "UV_INDEX_STRATEGY": "s"})
    assert variables == {"UV_INDEX": "y"}


def test_switches_and_blanks() -> None:
    assert uv_variables({"no-index": "true", "find-links": " "}, {}) == {"UV_NO_INDEX": "1"}
    assert uv_variables({"no-index": "false"}, {}) == {}
    assert uv_variables({"index-url": "x"}, {}) == {"UV_DEFAULT_INDEX": "x"}
    assert uv_variables({"timeout": "5", "default-timeout": "9"}, {}) == {"UV_HTTP_TIMEOUT": "5"}
