"""The published behaviour stays as it is: masks and trained weights to the bit, metrics to ten digits.

golden.json was made by compute.py before the contracts of methods, metrics and records were unified. A change of it is
a change of what users publish: say so in the commit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Same kernels on every x86-64 machine: ATen's for AVX2, MKL's compatible ones, oneDNN's for AVX2.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PORTABLE |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def computed():
    done = subprocess.run(
        [sys.executable, HERE / "compute.py"], env={**os.environ, **PORTABLE}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


GOLDEN = json.loads((HERE / "golden.json").read_text())


def test_trained_weights(computed):
    assert computed["training"] == GOLDEN["training"]


@pytest.mark.parametrize("method", GOLDEN["unlearning"])
def test_unlearning(computed, method):
    now, then = computed["unlearning"][method], GOLDEN["unlearning"][method]
    assert now["masks"] == then["masks"]
    assert {name: now["row"][name] for name in then["row"]} == pytest.approx(then["row"], rel=1e-10, abs=1e-5)
