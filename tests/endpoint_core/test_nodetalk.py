"""What agent and managers say to each other."""

from __future__ import annotations

import pytest

from farcall.wire import Output
from farcall_endpoint.nodetalk import News, Unwanted, read_news, read_unwanted, write_news, write_unwanted
from farcall_endpoint.sightings import Node, Started

NODE = Node("uid", "0", "n1", 4, 1234.5)
NEWS = News(NODE, [Started(7, "t", 10**18, "n1", 3)], [Output("t", "stderr", 5, "é\n")])


def test_what_a_manager_says_arrives_as_it_was_said() -> None:
    assert read_news(write_news(NEWS)) == NEWS
    assert read_news(write_news(News(None))) == News(None, [], [])


def test_what_the_agent_says_arrives_as_it_was_said() -> None:
    assert read_unwanted(write_unwanted(Unwanted([1, 2], 3.0))) == Unwanted([1, 2], 3.0)


def test_what_a_newer_side_says_besides_is_ignored() -> None:
    message = b'{"node": {"uid": "u", "block_id": "0", "hostname": "h", "workers": 1, "colour": 3}, "weather": 1}'

    assert read_news(message) == News(Node("u", "0", "h", 1, None), [], [])


@pytest.mark.parametrize("message", [b"", b"\xff", b"[]", b"3", b"{}", b'{"node": 3}', b'{"node": null, "started": 3}'])
def test_what_is_not_understood_is_a_value_error(message: bytes) -> None:
    for read in (read_news, read_unwanted):
        with pytest.raises(ValueError):
            read(message)
