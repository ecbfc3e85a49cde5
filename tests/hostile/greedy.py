"""Programs that take more than they may: time, memory, output, processes, descriptors."""

from cipo_jax.verify import AssertsReference, CallsReference
from hostile import SAFE, Case

F = CallsReference(function="f", cases=(((), 1),))
ASSERT_F = AssertsReference(function="f", tests="def check(c):\n    assert c() == 1\n")
LIMIT = ("timeout",)


def _case(name, source, *reasons, reference=SAFE):
    return Case(name=name, source=source, reference=reference, reasons=reasons)


CASES = [
    _case("g01 spins", "while True: pass", "timeout"),
    _case("g02 sleeps", "import time\ntime.sleep(25)", "timeout"),
    _case("g03 spins in C", "sum(range(10**12))", "timeout"),
    _case("g04 big integer in C", "x = 7 ** (7 ** 10)\nprint(x % 3)", "timeout", "memory"),
    _case("g05 regular expression", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "timeout"),
    _case("g06 catches everything and spins",
          "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
          "timeout"),
    _case("g07 ignores signals and spins",
          "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
          "    except (OSError, ValueError): pass\nwhile True: pass", "timeout"),
    _case("g08 closes all descriptors and spins",
          "import os\nos.closerange(0, 1000)\nwhile True: pass", "timeout"),
    _case("g09 allocates", "x = []\nwhile True: x.append(bytearray(2**24))", "memory"),
    _case("g10 allocates 3 GiB at once", "x = bytearray(3 * 2**30)", "memory"),
    _case("g11 string doubling", "x = 'x'\nwhile True: x += x", "memory"),
    _case("g12 swallows MemoryError",
          "x = []\nfor i in range(3000):\n    try: x.append(bytearray(2**20))\n"
          "    except MemoryError: pass\nprint('safe')", "ok", "memory", "runtime_error"),
    _case("g13 maps memory", "import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(20)]",
          "runtime_error", "memory"),
    _case("g14 prints for ever", "while True: print('x' * 1000)", "output_limit"),
    _case("g15 writes stderr for ever",
          "import sys\nwhile True: sys.stderr.write('x' * 10000)", "output_limit"),
    _case("g16 one write of 200 MB", "import os\nos.write(1, b'x' * 2 * 10**8)\nos.write(1, b'x')",
          "output_limit", "memory"),
    _case("g17 grows its output file",
          "import os\nfor size in (2**30, 2**40):\n    try: os.ftruncate(1, size)\n"
          "    except OSError: pass\nos.write(1, b'x' * 2 * 10**6)", "output_limit",
          "wrong_answer"),
    _case("g18 fork bomb",
          "import os\nmade = 0\nfor i in range(300):\n    try:\n        if os.fork() == 0:\n"
          "            import time\n            time.sleep(20)\n            os._exit(0)\n"
          "        made += 1\n    except OSError: pass\nprint('safe' if not made else made)", "ok"),
    _case("g19 many threads",
          "import threading, time\ntry:\n    for i in range(2000):\n"
          "        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()\n"
          "except RuntimeError: pass\nprint('safe')", "ok", "memory", "runtime_error"),
    _case("g20 threads that never end",
          "import threading, time\nfor i in range(5):\n"
          "    threading.Thread(target=time.sleep, args=(25,)).start()\nprint('safe')", "timeout"),
    _case("g21 opens descriptors",
          "import os\nn = 0\ntry:\n    while n < 5000:\n        os.dup(0)\n        n += 1\n"
          "except OSError: pass\nprint('safe' if n < 100 else n)", "ok"),
    _case("g22 C stack overflow",
          "import sys\nsys.setrecursionlimit(10**9)\n"
          "class A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\n"
          "def f(x): return [f(y) for y in map(f, [x])]\nf(0)",
          "runtime_error", "memory", "timeout"),
    _case("g23 deeply nested source", "x = " + "(" * 5000 + "1" + ")" * 5000, "bad_format",
          "memory", "runtime_error"),
    _case("g24 enormous constant expression", "x = 2 ** 2 ** 2 ** 2 ** 2 ** 2\nprint(x)",
          "timeout", "memory"),
    _case("g25 fills the disk",
          "n = 0\ntry:\n    for i in range(3000):\n        with open(f'fill{i}', 'wb') as f:\n"
          "            n += f.write(b'x' * 100000)\nexcept OSError: pass\n"
          "print('safe' if n < 2**25 else n)", "ok"),
    _case("g26 makes many files",
          "import os\nn = 0\ntry:\n    for i in range(20000):\n        os.mkdir(f'd{i}')\n"
          "        n += 1\nexcept OSError: pass\nprint('safe' if n < 2000 else n)", "ok"),
    _case("g27 spins in an exit handler",
          "import atexit\ndef f():\n    while True: pass\natexit.register(f)\nprint('safe')",
          "timeout"),
    _case("g28 function that never returns", "def f():\n    while True: pass", "timeout",
          reference=F),
    _case("g29 never returns under assertions", "def f():\n    while True: pass", "timeout",
          reference=ASSERT_F),
    _case("g30 returns a gigantic value", "def f(): return [[0] * 10**6] * 50", "runtime_error",
          "memory", "output_limit", "timeout", reference=F),
    _case("g31 returns an endless generator",
          "def f():\n    while True: yield 1", "runtime_error", reference=F),
    _case("g32 returns endless nesting", "def f():\n    x = []\n    x.append(x)\n    return x",
          "runtime_error", reference=F),
    _case("g33 nested too deep for the reader",
          "import os\ndef f():\n    os.write(4, b'[' * 900000)\n    os._exit(0)", "no_result",
          reference=F),
    _case("g34 module that spins on import", "while True: pass", "timeout", reference=ASSERT_F),
    _case("g39 crashes", "import ctypes\nctypes.string_at(0)", "runtime_error"),
    _case("g40 writes over the interpreter", "import ctypes\nctypes.memset(id(int), 255, 400)\n"
          "print(int('5') + 1)", "runtime_error", "timeout"),
    _case("g41 an exception that never says what it is",
          "class E(Exception):\n    def __str__(self):\n        while True: pass\n"
          "def f(): raise E", "timeout", reference=ASSERT_F),
    _case("g42 text that takes quadratic time to read as a number",
          "def f(): return int('9' * 4000) ** 200", "wrong_answer", "runtime_error", reference=F),
    _case("g43 a result by parts for ever",
          "import os, time\nwhile True:\n    os.write(4, b'\\0')\n    time.sleep(0.01)\n"
          "def f(): return 1", "timeout", "no_result", "runtime_error", reference=ASSERT_F),
    _case("g36 kills itself", "import signal\nsignal.raise_signal(signal.SIGKILL)",
          "runtime_error"),
    _case("g37 asks to be killed early",
          "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\n"
          "except (OSError, ValueError): print('safe')", "ok"),
    _case("g38 timers that would kill it",
          "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
          "event = (ctypes.c_int * 16)(0, 0, 9, 0)\ntimer = ctypes.c_long()\n"
          "print('safe' if libc.timer_create(1, event, ctypes.byref(timer)) else 'made')", "ok"),
    _case("g35 huge frame announced to the tester",
          "import os\nos.write(4, b'\\xff\\xff\\xff\\xff')\nimport time\ntime.sleep(25)\n"
          "def f(): return 1", "no_result", "runtime_error", "timeout", reference=ASSERT_F),
]  # fmt: skip
