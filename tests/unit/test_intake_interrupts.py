"""A Ctrl-C falls between steps."""

from __future__ import annotations

import os
import signal

import pytest

from streaming.intake.interrupts import WholeSteps


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_step_is_finished_before_the_interrupt_is_raised() -> None:
    steps, done = WholeSteps(), []
    with steps.watching(), pytest.raises(KeyboardInterrupt):
        with steps:
            interrupt()
            done.append("the rest of the step")
        done.append("never")
    assert done == ["the rest of the step"]
    with steps.watching(), steps:  # it was raised once
        pass


def test_between_steps_it_is_raised_at_once_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), WholeSteps().watching():
        interrupt()
        raise AssertionError("not interrupted")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_fault_within_a_step_is_what_its_caller_sees() -> None:
    steps = WholeSteps()
    with steps.watching(), pytest.raises(ValueError, match="fault"), steps:
        interrupt()
        raise ValueError("fault")
