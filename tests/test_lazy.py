import subprocess
import sys

START = """
import sys, threading
import tinymem.lazy
"""

# A module that takes a while, imports a part that touches it half-loaded, and counts how often it runs.
SLOW = """
import sys, time
sys.runs = getattr(sys, "runs", 0) + 1
early = 1
from slow import part
time.sleep(0.3)
late = part.early + 1
"""
PART = "import slow\nearly = slow.early\n"

TOUCH_IN_THREADS = """
def touch():
    barrier.wait()
    found.append(read())

found, barrier = [], threading.Barrier(8)
threads = [threading.Thread(target=touch) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(30)
"""


def run(code, folder) -> str:
    """What a fresh Python prints that runs this code with `folder` on its path."""
    program = START + f"sys.path.insert(0, {str(folder)!r})\n" + code
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def slow_module(folder) -> str:
    """Writes the module `slow` and returns the code that imports it lazily."""
    (folder / "slow").mkdir()
    (folder / "slow" / "__init__.py").write_text(SLOW)
    (folder / "slow" / "part.py").write_text(PART)
    return "tinymem.lazy.HEAVY += ('slow',)\nimport slow\nassert not hasattr(sys, 'runs')\n"


def test_threads_wait_until_the_module_is_whole(tmp_path):
    code = slow_module(tmp_path) + "read = lambda: slow.late\n" + TOUCH_IN_THREADS
    assert run(code + "print(found, sys.runs, type(slow).__name__)", tmp_path) == f"{[2] * 8} 1 module"


def test_threads_that_touch_numpy_at_once(tmp_path):
    code = "import numpy\nassert 'numpy.linalg' not in sys.modules\nread = lambda: int(numpy.arange(3).sum())\n"
    assert run(code + TOUCH_IN_THREADS + "print(found)", tmp_path) == str([3] * 8)


def test_a_module_that_fails_to_load_is_tried_again(tmp_path):
    (tmp_path / "slow.py").write_text("import sys\nif not hasattr(sys, 'ready'): raise ImportError('not yet')\nx = 5")
    code = """
tinymem.lazy.HEAVY += ("slow",)
import slow
try: slow.x
except ImportError as error: print(error, end=" ")
sys.ready = True
print(slow.x, type(slow).__name__)
"""
    assert run(code, tmp_path) == "not yet 5 module"


def test_installing_twice_changes_nothing(tmp_path):
    code = """
import importlib
count = len(sys.meta_path)
tinymem.lazy.install()
importlib.reload(tinymem.lazy)
import numpy
print(len(sys.meta_path) - count, 'numpy.linalg' in sys.modules, numpy.arange(3).sum())
"""
    assert run(code, tmp_path) == "0 False 3"
