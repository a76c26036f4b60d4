"""The device profile: numpy, OpenCV and soundfile alone, no network, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROBE = """
import json, socket, sys

class Without:
    # a finder as it would be if some packages were not installed

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {absent!r}:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = socket.getaddrinfo = refuse

from edgeid import EdgeID
from edgeid.demo import synthetic_people

ann = next(synthetic_people())
with EdgeID(store=":memory:", key=bytes(range(32)), engine={engine!r}) as eid:
    eid.enroll("ann", images=ann.images[:3], audio=ann.audio[:3])
    result = eid.verify(ann.images[3], ann.audio[3], user="ann")
status = open("/proc/self/status").read()  # ru_maxrss would count the parent before exec
peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps({{"accepted": result.accepted, "peak": peak,
                   "modules": sorted(m.partition(".")[0] for m in sys.modules)}}))
"""

DEVELOPMENT = ("torch", "onnx", "onnxscript", "scipy", "tqdm", "matplotlib", "librosa", "rich")


def probe(engine, absent):
    code = PROBE.format(engine=engine, absent=absent)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_verification_needs_the_device_profile_alone():
    """Without onnxruntime and every development package; sockets raise."""
    seen = probe("auto", (*DEVELOPMENT, "onnxruntime"))
    assert seen["accepted"]
    assert not set(DEVELOPMENT) & set(seen["modules"])
    assert seen["peak"] <= 150, "MiB of memory at the peak"


def test_onnxruntime_opens_no_socket_either():
    pytest.importorskip("onnxruntime")
    assert probe("onnxruntime", DEVELOPMENT)["accepted"]
