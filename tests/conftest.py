import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no test fetches anything from outside
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_configure():
    """A signal ends the tests at any moment, also in the middle of a training in this process.

    train.py saves, then calls the handler that was there before it: this one.
    """
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("stopped by SIGTERM", 143))


def pytest_collection_modifyitems(items):
    """Whatever needs a SLURM is slow: it has to be started first."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Ctrl-C in a training in this process ends in SystemExit: it is meant for the tests."""
    try:
        return (yield)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            pytest.exit("stopped by SIGINT", end.code)
        raise


def pytest_unconfigure():
    """Processes that a test has started end with it."""
    import tiny

    for process in tiny.CHILDREN:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
