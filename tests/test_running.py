"""The tests' own processes: they start with default signals, and none is left behind."""

import signal
import subprocess
import sys

import pytest

from tests.running import marked, started

SLEEP = "import time; time.sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("parent", ["lives", "is gone"])
def test_what_a_test_started_ends_with_it(parent):
    up = f"import os; os.write(1, b'up' + bytes([10])); {SLEEP}"  # its environment can be read from here on
    child = f"subprocess.Popen([sys.executable, '-c', {up!r}], start_new_session=True)"
    code = f"import os, subprocess, sys; print(os.environ['TDLM_TEST_MARK'], flush=True); {child}"
    code += f"; {SLEEP}" if parent == "lives" else ""
    with pytest.raises(AssertionError, match="of the test"):
        with started([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            mark = process.stdout.readline().strip()
            assert process.stdout.readline() == "up\n"
            if parent == "is gone":
                process.wait()
            assert len(mark) == 32 and len(marked(mark)) == 1 + (parent == "lives")
            raise AssertionError("of the test")
    assert not marked(mark)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_child_gets_signals_that_this_process_ignores(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    code = f"import signal; print(signal.getsignal(signal.{name}) != signal.SIG_IGN, flush=True); {SLEEP}"
    try:
        with started([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout.readline() == "True\n"
            process.send_signal(number)
            assert process.wait() in (-number, 1)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
