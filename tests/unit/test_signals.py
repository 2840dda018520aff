from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from pipeline.errors import Interrupted
from pipeline.signals import handlers_kept, interruptible


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_block_with_its_exit_code(number: signal.Signals, code: int) -> None:
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code


def test_an_ignored_sigint_is_heard_inside_and_ignored_again_after() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interrupted), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_does_nothing() -> None:
    entered = []

    def work() -> None:
        with interruptible():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


def test_a_library_that_takes_sigterm_gives_it_back_and_does_not_decide_the_exit_code() -> None:
    """As Ray does while it starts."""

    def start() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, handlers_kept():
        start()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit, match="1"), handlers_kept():
        sys.exit(1)
