import os
import signal
import threading

import pytest

from palidecode.runs.stopping import StopAsked, Stopping, run_stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_the_second_interrupts(number, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Stopping() as stopping:
        stopping.check()
        os.kill(os.getpid(), number)
        assert stopping.signal == number
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopAsked):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr().err == (
        "palidecode: stopping after this batch (Ctrl-C again: immediately)\n"
    )


def test_what_was_stopped_says_how_to_go_on(capsys):
    def work(stopping):
        os.kill(os.getpid(), signal.SIGTERM)
        stopping.check()

    def impatient(stopping):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted(stopping):
        raise KeyboardInterrupt

    assert run_stoppable(lambda stopping: 7, "x") == 7
    assert capsys.readouterr().err == ""
    assert run_stoppable(work, "again") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "palidecode: stopped; again\n"
    assert run_stoppable(impatient, "again") == 128 + signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        run_stoppable(interrupted, "x")


def test_other_threads_hear_nothing():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_stoppable(lambda _: 3, "x")))
    thread.start()
    thread.join()
    assert codes == [3]
