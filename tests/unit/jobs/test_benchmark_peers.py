from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from jobs import benchmark_peers

_STARTS_ONE = f"""
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from {benchmark_peers.__name__} import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
    child = pool.submit(os.getpid).result()
    busy = pool.submit(time.sleep, 600)
    print(child, flush=True)
    busy.result()
"""


def test_the_process_of_a_contestant_ends_with_the_benchmark_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "benchmark.py"
    script.write_text(_STARTS_ONE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        child = psutil.Process(int(started.stdout.readline()))
        started.kill()
    child.wait(timeout=60)
