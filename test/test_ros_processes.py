"""Programs that tests, benchmarks and the demonstration start: they end with who started them, whatever ends that."""

import shutil
import subprocess
import sys
import textwrap
import threading

import psutil
import pytest

from panoptic_mapper.ros.processes import ChildProcess

TIMEOUT_S = 60.0
BUSY = "sum(range(10**7))"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is not installed")
def test_a_program_ends_when_its_parent_is_killed(tmp_path):
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from panoptic_mapper.ros.processes import ChildProcess
        sleep = "import time; print('up'); time.sleep(1e6)"
        child = ChildProcess("it", ["-c", sleep], Path({str(tmp_path / "log")!r}), {{}})
        while "up" not in child.log_tail():
            child.check_alive()
        print(child._process.pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    psutil.wait_procs([child], timeout=TIMEOUT_S)
    assert not child.is_running()


def test_a_program_runs_on_beside_threads_that_end(tmp_path):
    with ChildProcess("it", ["-c", "input()"], tmp_path / "log", {}) as child:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        child.check_alive()


def test_the_time_of_its_own_children_counts(tmp_path):
    busy = f"import subprocess, sys; {BUSY}; print(flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {busy!r}], stdin=subprocess.PIPE,"
    code += " stdout=subprocess.PIPE); p.stdout.readline(); print('done', flush=True); p.wait()"
    with ChildProcess("it", ["-c", code], tmp_path / "log", {}) as child:
        alone = psutil.Process(child._process.pid)
        while "done" not in child.log_tail():
            child.check_alive()
        times = alone.cpu_times()
        assert child.cpu_s() > times.user + times.system + 0.05
