"""The exception tree: what is caught by what, what the messages say, and that everything pickles."""

from __future__ import annotations

import pickle

import pytest

from polyloop import _codec, errors
from polyloop.errors import (
    PoisonTask,
    PolyloopError,
    PoolClosed,
    PoolFull,
    PoolTerminated,
    RemoteError,
    TaskTimeout,
    WorkerDied,
    WorkerStartError,
)

EXAMPLES = [
    PolyloopError("x"),
    PoolClosed("the pool is closed"),
    TaskTimeout("fetch ran longer than 2 s"),
    PoolTerminated("terminated"),
    PoolFull("100 tasks are pending"),
    WorkerDied(pid=7, exitcode=-9, task="app:fetch", attempt=2, hint="why"),
    PoisonTask("it killed 3 workers", pid=7, exitcode=3),
    WorkerStartError("the initializer failed"),
    RemoteError("app.E", "E(1)", "Traceback ...", "no"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_pickles_with_its_attributes(error: PolyloopError) -> None:
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_repr_of_every_error_names_it_and_all_that_is_known_of_it(error: PolyloopError) -> None:
    text = repr(error)
    assert text.startswith(f"{type(error).__name__}(")
    assert all(repr(arg) in text for arg in error.args)
    known = {name: value for name, value in vars(error).items() if value is not None and name != "__notes__"}
    assert all(repr(value) in text for value in known.values())
    assert repr(pickle.loads(pickle.dumps(error))) == text


def test_a_repr_can_be_evaluated_and_leaves_out_what_is_not_known() -> None:
    assert repr(WorkerDied()) == "WorkerDied()"
    died = WorkerDied(pid=7, exitcode=-9, task="app:fetch", attempt=2)
    assert repr(died) == (
        "WorkerDied(pid=7, exitcode=-9, signal='SIGKILL', hint='another process killed it, or the kernel did', "
        "task='app:fetch', attempt=2)"
    )
    assert vars(eval(repr(died))) == vars(died)
    assert repr(PoisonTask("three times", pid=7)) == "PoisonTask('three times', pid=7)"


def test_the_repr_of_a_remote_error_has_the_last_line_of_its_traceback() -> None:
    error = RemoteError("app.E", "E(1)", "Traceback ...:\n  File ...\napp.E: 1\n", "no")
    assert repr(error) == "RemoteError(type_name='app.E', repr='E(1)', traceback='app.E: 1', reason='no')"
    assert repr(RemoteError(reason="ValueError: x")) == "RemoteError(reason='ValueError: x')"


def test_an_error_whose_attributes_are_not_set_yet_has_a_repr() -> None:
    """As whoever looks into a half-built exception, in a debugger or a traceback of its class, may see it."""
    assert repr(WorkerDied.__new__(WorkerDied)) == "WorkerDied()"
    assert repr(RemoteError.__new__(RemoteError)) == "RemoteError()"


def test_every_public_error_is_below_the_root_and_has_an_example_here() -> None:
    classes = {getattr(errors, name) for name in errors.__all__}
    assert all(issubclass(cls, PolyloopError) for cls in classes)
    assert {type(error) for error in EXAMPLES} == classes


def test_errors_are_also_the_builtin_kind_programs_expect() -> None:
    assert issubclass(PoolClosed, RuntimeError)
    assert issubclass(TaskTimeout, TimeoutError)
    assert issubclass(PoisonTask, WorkerDied)


def test_a_death_by_signal_is_named_and_explained() -> None:
    error = WorkerDied(pid=71, exitcode=-9, task="app:fetch", attempt=1)
    assert error.signal == "SIGKILL"
    assert str(error) == (
        "worker 71 was killed by SIGKILL while it ran app:fetch (attempt 1): "
        "another process killed it, or the kernel did"
    )


def test_an_exit_code_and_an_unknown_end_are_told_apart() -> None:
    assert str(WorkerDied(pid=71, exitcode=3)) == "worker 71 exited with code 3"
    assert str(WorkerDied()) == "a worker died, how is unknown"


def test_a_signal_without_a_name_is_shown_by_number() -> None:
    assert WorkerDied(exitcode=-40).signal == "signal 40"


def test_a_message_given_replaces_the_one_made() -> None:
    error = WorkerDied("gone", pid=1)
    assert str(error) == "gone"
    assert error.pid == 1


class HasItsOwnCause(Exception):
    """Its class says what its cause is."""

    @property
    def __cause__(self) -> None:  # type: ignore[override]
        return None


class HasItsOwnNotes(HasItsOwnCause):
    @property
    def __notes__(self) -> list[str]:
        raise SystemExit("no notes")


def test_a_remote_traceback_that_cannot_be_a_cause_is_a_note() -> None:
    arrived = _codec.load_exception(_codec.dump_exception(HasItsOwnCause("ada")))
    assert (type(arrived), arrived.args) == (HasItsOwnCause, ("ada",))
    assert any("HasItsOwnCause: ada" in note for note in arrived.__notes__)
    bare = _codec.load_exception(_codec.dump_exception(HasItsOwnNotes("ada")))
    assert (type(bare), bare.args) == (HasItsOwnNotes, ("ada",))
