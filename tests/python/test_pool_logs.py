"""`forward_logs`: what workers log arrives in the client's loggers; once, in order, and without holding up anybody."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import log_targets as targets
from polyloop import Pool, WorkerDied
from rendezvous import Bell

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)


class Records(logging.Handler):
    """What arrives, apart from what the pool itself says."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[logging.LogRecord] = []
        self.arrival = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)
        self.arrival.set()

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.all if record.name != "polyloop"]

    async def until(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            self.arrival.clear()
            await self.arrival.wait()


@pytest.fixture
def records() -> Iterator[Records]:
    records, root = Records(), logging.getLogger()
    root.addHandler(records)
    yield records
    root.removeHandler(records)


def pool(**options: Any) -> Pool:
    return Pool(1, targets.drop_handlers, **options)


# --------------------------------------------------------------------------------------------------------- what arrives


def test_records_arrive_as_they_were_before_the_outcome_of_their_task(
    start_method: str, run: Run, records: Records
) -> None:
    async def main() -> None:
        async with pool() as workers:
            pid = await workers.apply(targets.logs_of_all_kinds)
            one, two, three, four = records.all
        assert [(record.name, record.levelname, record.getMessage()) for record in (one, two, three, four)] == [
            ("app.worker", "WARNING", "1 of {'a': 2}"),
            ("app.other", "ERROR", "no arguments: %d"),
            ("app.worker", "ERROR", "it failed"),
            ("root", "CRITICAL", "of the root"),
        ]
        assert {record.process for record in records.all} == {pid} != {os.getpid()}
        assert "worker-0" in (one.processName or "")
        assert (one.funcName, one.filename) == ("logs_of_all_kinds", "log_targets.py")
        assert three.exc_info is None
        assert "LookupError: what went wrong" in logging.Formatter().format(three)
        assert "logs_of_all_kinds" in (three.stack_info or "")
        extra = vars(three)
        assert (extra["user"], extra["thing"], extra["more"]) == ("me", "<an unsendable thing>", [1, {2: "3"}])

    run(main())


def test_they_arrive_in_order(records: Records) -> None:
    async def main() -> None:
        async with pool() as workers:
            await workers.apply(targets.counts, (100,))
            assert records.texts == [str(number) for number in range(100)]

    asyncio.run(main())


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"], indirect=True)
def test_warnings_arrive_too(start_method: str, records: Records) -> None:
    async def main() -> None:
        async with Pool(1) as workers:
            await workers.apply(targets.warns)
            (record,) = records.all
            assert (record.name, record.levelname) == ("py.warnings", "WARNING")
            assert "RuntimeWarning: be careful" in record.getMessage()

    asyncio.run(main())


def test_loggers_have_the_levels_that_they_have_in_the_client(start_method: str, records: Records) -> None:
    async def main() -> None:
        chatty = logging.getLogger("app.chatty")
        chatty.setLevel(logging.DEBUG)
        try:
            async with pool() as workers:
                await workers.apply(targets.debugs)
                assert records.texts == ["a detail"]
                chatty.setLevel(logging.INFO)
                await workers.apply(targets.debugs)
                assert records.texts == ["a detail"], "what this process does not want is not handled"
        finally:
            chatty.setLevel(logging.NOTSET)

    asyncio.run(main())


def test_those_of_threads_arrive_and_those_of_forked_children_do_not(records: Records) -> None:
    async def main() -> None:
        async with pool() as workers:
            await workers.options(in_thread=True).apply(targets.logs_elsewhere)
            assert await workers.apply(targets.logs_in_a_fork) == 0
            assert records.texts == ["on a thread of the pool", "on a thread of its own"]

    asyncio.run(main())


def test_those_of_an_initializer_arrive(start_method: str, records: Records) -> None:
    async def main() -> None:
        async with Pool(1, targets.log_at_start) as workers:
            await workers.apply(targets.counts, (1,))
            assert records.texts == ["it starts", "0"]

    asyncio.run(main())


def test_one_that_is_too_large_is_cut(records: Records) -> None:
    async def main() -> None:
        async with pool() as workers:
            await workers.apply(targets.logs_much)
            (record,) = records.all
            assert record.getMessage().startswith("the beginning...")
            assert record.getMessage().endswith("characters left out]")
            assert (record.exc_text or "").endswith("...the end")
            assert not hasattr(record, "blob")

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- and what does not


@pytest.mark.parametrize(("initializer", "forward"), [(targets.configure, True), (targets.drop_handlers, False)])
def test_none_arrive_where_a_root_logger_has_a_handler_or_nobody_wants_them(
    start_method: str, records: Records, initializer: Any, forward: bool
) -> None:
    async def main() -> None:
        async with Pool(1, initializer, forward_logs=forward) as workers:
            await workers.apply(targets.counts, (1,))
            handlers, _ = await workers.apply(targets.state_of_root)
            assert (records.texts, handlers) == ([], int(forward))

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------- come what may


def test_last_words_arrive_before_the_news_of_the_death(start_method: str, run: Run, records: Records) -> None:
    async def main() -> None:
        async with pool() as workers:
            for deaths in range(1, 4):
                with pytest.raises(WorkerDied):
                    await workers.apply(targets.logs_and_dies)
                assert records.texts == ["last words"] * deaths

    run(main())


def test_a_flood_holds_up_nobody_and_what_is_dropped_is_counted(bell: Bell, records: Records) -> None:
    async def main() -> None:
        count = 5000
        async with pool() as workers:
            await workers.apply(targets.counts, (1,))
            records.all.clear()
            flooded = workers.submit(targets.floods, bell.path, count)
            await asyncio.sleep(0)
            os.set_blocking(bell.fd, True)
            assert os.read(bell.fd, 1) == b"\n", "while this loop takes nothing in"
            await flooded
            await records.until(lambda: len(records.texts) + _dropped(records) == count)
            numbers = [int(text) for text in records.texts]
            assert numbers == sorted(numbers)
            assert numbers[:100] == list(range(100))
            assert _dropped(records) > 0

    asyncio.run(main())


def test_handlers_and_filters_that_fail_are_reported_and_harm_no_task(records: Records) -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

        def refuse(_: object) -> bool:
            raise LookupError("a bad filter")

        logger = logging.getLogger("app.worker")
        logger.addFilter(refuse)
        try:
            async with pool() as workers:
                await workers.apply(targets.counts, (2,))
                assert [repr(context["exception"]) for context in reported] == ["LookupError('a bad filter')"] * 2
        finally:
            logger.removeFilter(refuse)

    asyncio.run(main())


def _dropped(records: Records) -> int:
    """Of how many the pool says that they were dropped."""
    return sum(record.args[1] for record in records.all if "were dropped" in record.getMessage())  # type: ignore[index, misc]
