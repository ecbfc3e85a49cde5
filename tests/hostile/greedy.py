"""Programs that take more than they may: time, memory, output, processes, descriptors."""

from cipo_jax.verify import AssertsReference, CallsReference
from tests.hostile import SAFE, Case

F = CallsReference(function="f", cases=(((), 1),))
ASSERT_F = AssertsReference(function="f", tests="def check(c):\n    assert c() == 1\n")
LARGE = CallsReference(function="f", cases=(((3,), 918273645),))


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
    _case("g44 mmap shared huge",
          "import mmap\n"
          "try:\n"
          "    x=[mmap.mmap(-1,2**27,mmap.MAP_SHARED|mmap.MAP_ANONYMOUS) for _ in range(20)]\n"
          "    for m in x: m[::4096]=b'x'*len(m[::4096])\n"
          "except (OSError,MemoryError,ValueError): print('safe')",
          "ok"),
    _case("g45 mmap NORESERVE",
          "import ctypes\n"
          "l=ctypes.CDLL(None);l.mmap.restype=ctypes.c_long\n"
          "l.mmap.argtypes=[ctypes.c_long]*6\n"
          "print('safe' if l.mmap(0,2**40,3,0x4022,-1,0)==-1 else 'mapped')",
          "ok"),
    _case("g46 mremap grows",
          "import ctypes\n"
          "l=ctypes.CDLL(None);l.mmap.restype=l.mremap.restype=ctypes.c_long\n"
          "l.mmap.argtypes=[ctypes.c_long]*6;l.mremap.argtypes=[ctypes.c_long]*4\n"
          "a=l.mmap(0,4096,3,0x22,-1,0)\n"
          "print('safe' if l.mremap(a,4096,2**31,1)==-1 else 'grew')",
          "ok"),
    _case("g47 memory in files it holds",
          "import os\n"
          "n=0\n"
          "for d in range(5):\n"
          "    for _ in range(3000):\n"
          "        try: n+=os.write(d,b'x'*2**20)\n"
          "        except OSError: break\n"
          "print('safe' if n<2**23 else n)",
          "output_limit", "wrong_answer", "runtime_error"),
    _case("g48 fallocate stdin",
          "import os,signal\n"
          "signal.signal(signal.SIGXFSZ,signal.SIG_IGN)\n"
          "n=0\n"
          "for d in (0,1,2):\n"
          "    try: os.posix_fallocate(d,0,2**33);n+=1\n"
          "    except OSError: pass\n"
          "os.ftruncate(1,0)\n"
          "print('safe' if not n else n)",
          "ok"),
    _case("g49 pwrite far",
          "import os,signal\n"
          "signal.signal(signal.SIGXFSZ,signal.SIG_IGN)\n"
          "try: os.pwrite(0,b'x',2**40);print('wrote')\n"
          "except OSError: print('safe')",
          "ok"),
    _case("g50 json bomb",
          "import json\n"
          "json.loads('['*10**6)",
          "runtime_error"),
    _case("g51 generator recursion",
          "import sys\n"
          "sys.setrecursionlimit(10**9)\n"
          "def f():\n"
          "    yield from f()\n"
          "list(f())",
          "runtime_error", "memory", "timeout"),
    _case("g52 deep dealloc",
          "x=None\n"
          "for _ in range(10**6): x=(x,)\n"
          "del x\n"
          "print('safe')",
          "ok"),
    _case("g53 deep nested dealloc at exit",
          "x=None\n"
          "for _ in range(10**6): x=[x]\n"
          "print('safe')",
          "ok"),
    _case("g54 del that spins at exit",
          "class A:\n"
          "    def __del__(self):\n"
          "        while True: pass\n"
          "a=A()\n"
          "print('safe')",
          "timeout"),
    _case("g55 del at exit raises exit",
          "import os\n"
          "class A:\n"
          "    def __del__(self): os._exit(7)\n"
          "a=A()\n"
          "print('safe')",
          "runtime_error"),
    _case("g56 sigstop itself",
          "import os,signal\n"
          "signal.raise_signal(signal.SIGSTOP)\n"
          "print('x')",
          "timeout"),
    _case("g57 sigtstp",
          "import signal\n"
          "signal.raise_signal(signal.SIGTSTP)\n"
          "print('safe')",
          "timeout", "ok"),
    _case("g58 itimer kills",
          "import signal,time\n"
          "signal.setitimer(signal.ITIMER_REAL,0.01)\n"
          "time.sleep(3)",
          "runtime_error"),
    _case("g59 prof timer kills",
          "import signal\n"
          "signal.setitimer(signal.ITIMER_PROF,0.01)\n"
          "while True: pass",
          "runtime_error"),
    _case("g60 closed stdin and stdout and sleeps",
          "import os,time\n"
          "for i in range(5):\n"
          "    try: os.close(i)\n"
          "    except OSError: pass\n"
          "time.sleep(20)",
          "timeout"),
    _case("g61 pipe filled by itself",
          "import os\n"
          "r,w=os.pipe()\n"
          "while True: os.write(w,b'x'*65536)",
          "timeout"),
    _case("g62 flood of stderr lines then right",
          "import sys\n"
          "for i in range(400): sys.stderr.write('x'*1000)\n"
          "print('safe')",
          "ok"),
    _case("g63 many pipes",
          "import os\n"
          "n=0\n"
          "try:\n"
          "    while n<5000: os.pipe();n+=1\n"
          "except OSError: pass\n"
          "print('safe' if n<100 else n)",
          "ok"),
    _case("g64 epoll and eventfd and timerfd flood",
          "import os,select,ctypes\n"
          "n=0\n"
          "try:\n"
          "    k=[]\n"
          "    while n<5000: k.append(select.epoll());n+=1\n"
          "except OSError: pass\n"
          "print('safe' if n<100 else n)",
          "ok"),
    _case("g65 thread bomb with raw clone",
          "import _thread,time\n"
          "n=0\n"
          "_thread.stack_size(65536)\n"
          "try:\n"
          "    while n<20000: _thread.start_new_thread(time.sleep,(30,));n+=1\n"
          "except (RuntimeError,MemoryError): pass\n"
          "print('safe')\n"
          "import os,sys\n"
          "sys.stdout.flush()\n"
          "os._exit(0)",
          "ok", "memory", "runtime_error"),
    _case("g66 symlink loops and deep folders",
          "import os\n"
          "try:\n"
          "    for i in range(3000):\n"
          "        os.mkdir('d');os.chdir('d')\n"
          "except OSError: pass\n"
          "print('safe')",
          "ok"),
    _case("g67 files with odd names",
          "import os\n"
          "for n in (b'\\xff\\n',b'a'*255,b'-rf',b'\\x01'):\n"
          "    try: open(n,'w').write('x')\n"
          "    except OSError: pass\n"
          "print('safe')",
          "ok"),
    _case("g68 holds a lock on its library",
          "import fcntl,os\n"
          "try:\n"
          "    f=open(os.__file__);fcntl.flock(f,fcntl.LOCK_EX)\n"
          "except OSError: pass\n"
          "print('safe')",
          "ok"),
    _case("g69 source of unary operators",
          "x=" + "-" * 30000 + "1",
          "bad_format", "memory", "runtime_error", "wrong_answer"),
    _case("g70 source of nested lambdas",
          "x=" + "lambda:" * 3000 + "1",
          "bad_format", "memory", "runtime_error", "wrong_answer"),
    _case("g71 source of 15000 lines",
          "a=1\n" * 15000 + "print('safe')", "ok"),
    _case("g72 returns a slow iterator",
          "import time\n"
          "def f(x):\n"
          "    while True:\n"
          "        time.sleep(0.01)\n"
          "        yield 1",
          "timeout", reference=LARGE),
    _case("g73 returns a dict that lies about items",
          "class D(dict):\n"
          "    def items(self):\n"
          "        while True: yield 1,1\n"
          "def f(x): return D()",
          "runtime_error", reference=LARGE),
    _case("g74 returns a deque of itself",
          "import collections\n"
          "d=collections.deque()\n"
          "d.append(d)\n"
          "def f(x): return d",
          "runtime_error", reference=LARGE),
    _case("g75 returns a counter of lists",
          "import collections\n"
          "def f(x): return collections.Counter({(1,):[1]})",
          "wrong_answer", reference=LARGE),
    _case("g76 returns a great map",
          "def f(x): return map(str,range(10**9))",
          "runtime_error", "memory", "timeout", reference=LARGE),
    _case("g77 returns range of 10**18",
          "def f(x): return range(10**18)",
          "runtime_error", "memory", reference=LARGE),
    _case("g78 returns int of 10 MB",
          "def f(x): return 1<<(8*10**7)",
          "output_limit", "runtime_error", reference=LARGE),
    _case("g79 returns lone surrogate and NUL",
          "def f(x): return '\\ud800\\0'",
          "wrong_answer", reference=LARGE),
    _case("g80 returns deep tuple",
          "def f(x):\n"
          "    t=()\n"
          "    for _ in range(10**5): t=(t,)\n"
          "    return t",
          "runtime_error", "memory", reference=LARGE),
]  # fmt: skip
