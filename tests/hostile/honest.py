"""Programs that must be right, whatever the sandbox, and honest mistakes that must be wrong."""

from cipo_jax.verify import AssertsReference, CallsReference, StdioReference
from tests.hostile import Case

SUM = StdioReference(cases=(("3 4\n", "7\n"), ("-1 1\n", "0\n")))
ADD = CallsReference(function="add", cases=(((1, 2), 3), (([1], [2]), [1, 2]), (("a", "b"), "ab")))
SORT = AssertsReference(
    function="order",
    prelude="from typing import List\n\ndef helper(x):\n    return x * 2\n",
    tests=(
        "def check(candidate):\n"
        "    assert candidate([3, 1, 2]) == [1, 2, 3]\n"
        "    assert candidate([3, 1, 2], reverse=True) == [3, 2, 1]\n"
        "    assert helper(candidate([])) == []\n"
        "    try:\n"
        "        candidate(None)\n"
        "    except TypeError:\n"
        "        pass\n"
        "    else:\n"
        "        assert False, 'no error'\n"
    ),
)
NOTHING = StdioReference(cases=(("", "42\n"),))
ORDER = "def order(xs, reverse=False):\n    return sorted(xs, reverse=reverse)\n"

# What competition programs import; all of it must be there after the lock-down, from any folder.
IMPORTS = """
import sys, math, re, json, random, itertools, functools, collections, heapq, bisect, string, time
import operator, copy, decimal, fractions, statistics, datetime, typing, dataclasses, enum, array
import hashlib, struct, io, textwrap, cmath, numbers, contextlib, abc, queue, threading, base64
import unittest, inspect, traceback, types, warnings, pprint, zlib, csv, calendar, secrets, locale
import ast, graphlib, zoneinfo, urllib.parse, html, difflib, pickle, uuid, tempfile, pathlib
"""

CASES = [
    Case(name="h01 sum", reference=SUM, reasons=("ok",),
         source="a, b = map(int, input().split())\nprint(a + b)"),
    Case(name="h02 reads all of stdin", reference=SUM, reasons=("ok",),
         source="import sys\nprint(sum(map(int, sys.stdin.read().split())))"),
    Case(name="h03 reads bytes from descriptor 0", reference=SUM, reasons=("ok",),
         source="import os\nprint(sum(map(int, os.read(0, 100).split())))"),
    Case(name="h04 main guard and exit()", reference=SUM, reasons=("ok",),
         source="def main():\n    print(sum(map(int, input().split())))\n    exit(0)\n"
                "if __name__ == '__main__':\n    main()"),
    Case(name="h05 function", reference=ADD, reasons=("ok",), source="def add(a, b): return a + b"),
    Case(name="h06 method of Solution", reference=ADD, reasons=("ok",),
         source="class Solution:\n    def add(self, a, b):\n        return a + b"),
    Case(name="h07 prints while it computes", reference=ADD, reasons=("ok",),
         source="def add(a, b):\n    print('adding', a, b)\n    return a + b"),
    Case(name="h08 assertions", reference=SORT, reasons=("ok",), source=ORDER),
    Case(name="h09 imports", reference=NOTHING, reasons=("ok",), source=IMPORTS + "print(42)"),
    Case(name="h10 threads", reference=NOTHING, reasons=("ok",),
         source="import threading\nout = []\nts = [threading.Thread(target=out.append, args=(i,))"
                " for i in range(4)]\n[t.start() for t in ts]\n[t.join() for t in ts]\n"
                "print(42 if sorted(out) == [0, 1, 2, 3] else out)"),
    Case(name="h11 deep recursion", reference=NOTHING, reasons=("ok",),
         source="import sys\nsys.setrecursionlimit(10**6)\n"
                "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(42 if f(50000) else 0)"),
    Case(name="h12 recursion in a thread with a large stack", reference=NOTHING, reasons=("ok",),
         source="import sys, threading\nsys.setrecursionlimit(10**6)\n"
                "threading.stack_size(2**27)\n"
                "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
                "t = threading.Thread(target=lambda: print(42 if f(20000) else 0))\n"
                "t.start()\nt.join()"),
    Case(name="h13 200 MB of memory", reference=NOTHING, reasons=("ok",),
         source="x = bytearray(200 * 2**20)\nx[::4096] = b'1' * len(x[::4096])\nprint(42)"),
    Case(name="h14 dataclasses and pickling of main", reference=NOTHING, reasons=("ok",),
         source="import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n    x: int\n"
                "print(pickle.loads(pickle.dumps(A(42))).x)"),
    Case(name="h15 exit handler prints", reference=NOTHING, reasons=("ok",),
         source="import atexit\natexit.register(print, 42)"),
    Case(name="h16 8 MB of input not read", reasons=("ok",), source="print(42)",
         reference=StdioReference(cases=(("x" * 8_000_000, "42"),))),
    Case(name="h17 8 MB of input read", reasons=("ok",), source="print(len(input()))",
         reference=StdioReference(cases=(("x" * 8_000_000, "8000000"),))),
    Case(name="h18 trailing white space and newline", reference=SUM, reasons=("ok",),
         source="print(sum(map(int, input().split())), end='  \\n\\n')"),
    Case(name="h19 non-ASCII in and out", reasons=("ok",), source="print(input()[::-1])",
         reference=StdioReference(cases=(("äß語", "語ßä"),))),
    Case(name="h20 asyncio", reference=NOTHING, reasons=("ok", "runtime_error"),
         source="import asyncio\nasync def f():\n    return 42\nprint(asyncio.run(f()))"),
    Case(name="h21 writes a log to stderr", reference=NOTHING, reasons=("ok",),
         source="import sys\nprint('x' * 10000, file=sys.stderr)\nprint(42)"),
    Case(name="h22 Counter and generator results", reasons=("ok",),
         source="import collections\ndef f(x):\n"
                "    return collections.Counter(x) if x else (i for i in (1, 2))",
         reference=CallsReference(function="f", cases=((("aab",), {"a": 2, "b": 1}),
                                                       (("",), [1, 2])))),
    Case(name="h23 nan, infinities and huge integers", reasons=("ok",),
         source="def f(x):\n    return (float('nan'), float('inf'), 10**5000, -0.0)",
         reference=CallsReference(function="f", cases=(
             ((1,), (float("nan"), float("inf"), 10**5000, 0.0)),))),
    Case(name="h24 asks for a larger stack, as scripts do", reference=NOTHING, reasons=("ok",),
         source="import resource, sys\nsys.setrecursionlimit(10**6)\n"
                "resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
                "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(42 if f(50000) else 0)"),
    Case(name="h25 all the ways to read", reasons=("ok",),
         reference=StdioReference(cases=(("1\n2\n3\n4\n5\n6", "21"),)),
         source="import sys, fileinput\na = int(input())\nb = int(sys.stdin.readline())\n"
                "c = int(next(iter(sys.stdin)))\nd = int(sys.stdin.buffer.readline() or 0)\n"
                "print(a + b + c + sum(map(int, sys.stdin.read().split())) + d)"),
    Case(name="h26 open(0) and a file name", reasons=("ok",),
         reference=StdioReference(cases=(("4 2", "42 solution.py"),)),
         source="a, b = open(0).read().split()\nprint(a + b, __file__)"),
    Case(name="h27 unbuffered writes", reference=NOTHING, reasons=("ok",),
         source="import os, sys\nos.write(1, b'4')\nsys.stdout.buffer.write(b'2')\n"),
    Case(name="h28 raise_signal and handlers", reference=NOTHING, reasons=("ok",),
         source="import signal\nsignal.signal(signal.SIGALRM, lambda *a: print(42))\n"
                "signal.raise_signal(signal.SIGALRM)"),
    # Honest mistakes.
    Case(name="m01 wrong answer", reference=SUM, reasons=("wrong_answer",), source="print(7)"),
    Case(name="m02 raises", reference=SUM, reasons=("runtime_error",), source="print(1 / 0)"),
    Case(name="m03 not Python", reference=SUM, reasons=("bad_format",), source="let x = 1;"),
    Case(name="m04 no such function", reference=ADD, reasons=("no_result",), source="x = 1"),
    Case(name="m05 wrong for the last case", reference=ADD, reasons=("wrong_answer",),
         source="def add(a, b): return a + b if a != 'a' else 'no'"),
    Case(name="m06 tuple for a list", reasons=("wrong_answer",), source="def f(): return (1, 2)",
         reference=CallsReference(function="f", cases=(((), [1, 2]),))),
    Case(name="m07 fails an assertion", reference=SORT, reasons=("wrong_answer",),
         source="def order(xs, reverse=False): return sorted(xs)"),
    Case(name="m08 raises under assertions", reference=SORT, reasons=("runtime_error",),
         source="def order(xs, reverse=False): raise ValueError(xs)"),
    Case(name="m09 empty", reference=SUM, reasons=("no_answer",), source="  \n"),
    Case(name="m10 prints nothing", reference=SUM, reasons=("wrong_answer",), source="pass"),
    Case(name="m11 answer hidden in a line", reference=SUM, reasons=("wrong_answer",),
         source="print('the answer is', sum(map(int, input().split())))"),
    Case(name="m12 right answer, then a crash", reference=SUM, reasons=("runtime_error",),
         source="print(sum(map(int, input().split())))\nraise SystemExit(3)"),
    Case(name="m13 null byte", reference=SUM, reasons=("bad_format",), source="print(7)\0"),
    Case(name="m14 lone surrogate", reference=SUM, reasons=("bad_format",),
         source="print('\ud800')"),
]  # fmt: skip
