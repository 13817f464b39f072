"""What is cancelled at the end, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from colo.errors import LocalError
from colo.node.leaving import to_its_end, until_one_ends


def test_who_is_told_to_end_does_when_nothing_speaks_against_it() -> None:
    answers = [True, True, False]

    async def stays() -> bool:
        return answers.pop(0)

    async def run() -> None:
        work = asyncio.create_task(asyncio.sleep(60))
        waiting = asyncio.create_task(until_one_ends([work], stays))
        for _ in range(2):
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0.001)
            assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        work.cancel()

    asyncio.run(run())


def test_what_one_of_them_raises_is_raised() -> None:
    async def stays() -> bool:
        return False

    async def fail() -> None:
        raise LocalError("it broke")

    async def run() -> None:
        with pytest.raises(LocalError, match="it broke"):
            await until_one_ends([asyncio.create_task(fail())], stays)
        ended = asyncio.create_task(asyncio.sleep(0))
        await to_its_end(ended)
        await until_one_ends([ended], stays)

    asyncio.run(run())
