"""Background tasks: what fails is started again, and the process is not ready meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter

from baguni import background
from baguni.background import Background


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FIRST_WAIT_S", 0.01), ("LONGEST_WAIT_S", 0.02), ("SOUND_S", 0.05)):
        monkeypatch.setattr(background, name, seconds)


def restarts() -> Counter:
    return Counter("restarts", "x", ["task"], registry=CollectorRegistry())


def test_a_necessary_task_that_fails_is_started_again_and_readiness_follows() -> None:
    async def scenario() -> tuple[list[bool], float, float]:
        told: list[bool] = []
        counter, calls = restarts(), 0
        recovered = asyncio.Event()

        async def on_change() -> None:
            told.append(tasks.is_sound)
            if tasks.is_sound:
                recovered.set()

        async def fails_twice() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise KeyError("signature")
            if calls == 2:
                return  # for ever was promised: an end is a failure, too
            await asyncio.sleep(3_600)

        tasks = Background(counter, on_change)
        tasks.start("releases", fails_twice, is_necessary=True)
        tasks.start("callers", fails_twice)
        assert tasks.is_sound
        await asyncio.wait_for(recovered.wait(), 60)
        counted = [counter.labels(name)._value.get() for name in ("releases", "callers")]
        await tasks.stop()
        return told, *counted

    told, necessary, other = asyncio.run(scenario())
    assert told[0] is False
    assert told[-1] is True
    assert necessary + other == 2


def test_a_task_that_goes_on_failing_keeps_the_process_unready() -> None:
    async def scenario() -> tuple[bool, float]:
        counter, failed = restarts(), asyncio.Event()

        async def on_change() -> None:
            if counter.labels("items")._value.get() >= 5:
                failed.set()

        async def fails() -> None:
            raise ValueError("no payload")

        tasks = Background(counter, on_change)
        tasks.start("items", fails, is_necessary=True)
        await asyncio.wait_for(failed.wait(), 60)
        sound = tasks.is_sound
        await tasks.stop()
        return sound, counter.labels("items")._value.get()

    sound, count = asyncio.run(scenario())
    assert not sound
    assert count >= 5


def test_stopping_ends_what_runs() -> None:
    async def scenario() -> list[str]:
        ended: list[str] = []

        async def waits() -> None:
            try:
                await asyncio.sleep(3_600)
            finally:
                ended.append("ended")

        async def on_change() -> None:
            """Nothing."""

        tasks = Background(restarts(), on_change)
        tasks.start("loop", waits, is_necessary=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await tasks.stop()
        return ended

    assert asyncio.run(scenario()) == ["ended"]
