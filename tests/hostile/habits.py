"""Programs as people write them, which must all be right: every way to read and to print, to end,
to recurse, to define a function; and common mistakes, with the reason that each must be given."""

# ruff: noqa: E501 (lines of programs)
# fmt: off

import sys

from cipo_jax.verify import AssertsReference, CallsReference, Reference, StdioReference
from tests.hostile import Case

CASES: list[Case] = []


def _stdio(given: str, expected: str) -> StdioReference:
    return StdioReference(cases=((given, expected),))


def _calls(*cases, **more) -> CallsReference:
    return CallsReference(function="f", cases=cases, **more)


def _asserts(tests: str, prelude: str = "") -> AssertsReference:
    return AssertsReference(function="f", tests=tests, prelude=prelude)


NOTHING = _stdio("", "42\n")
SUM = _stdio("3\n1 2 3\n", "6\n")


def _right(name: str, source: str, reference: Reference = NOTHING) -> None:
    CASES.append(Case(name=f"p {name}", source=source, reference=reference, reasons=("ok",)))


def _wrong(name: str, source: str, reference: Reference, *reasons: str) -> None:
    CASES.append(Case(name=f"q {name}", source=source, reference=reference, reasons=reasons))


_right("fastio template pajenegod", '''
import os, sys
from io import BytesIO, IOBase
BUFSIZE = 8192
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def read(self):
        while True:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, BUFSIZE))
            if not b: break
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines = 0
        return self.buffer.read()
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, BUFSIZE))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.read = lambda: self.buffer.read().decode("ascii")
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip("\\r\\n")
n = int(input())
print(sum(map(int, input().split())))
''', SUM)
_right("closes stdout", "import sys\nprint(42)\nsys.stdout.close()")
_right("stdout set to None", "import sys\nprint(42)\nsys.stdout.flush()\nsys.stdout = None")
_right("with sys.stdout", "import sys\nwith sys.stdout as out: out.write('42\\n')")
_right("own file on 1, never flushed", "out = open(1, 'w')\nout.write('42')")
_right("own file on 1 closefd, in an object", "class W:\n    def __init__(self): self.f = open(1, 'w', closefd=False)\nw = W()\nw.f.write('42')")
_right("stdout replaced, old not flushed", "import sys, io\nold = sys.stdout\nsys.stdout = io.StringIO()\nprint('junk')\nold.write('42')")
_right("redirect_stdout", "import contextlib, io\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print(42)\nprint(b.getvalue())")
_right("TextIOWrapper on stdout.buffer", "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8', line_buffering=False)\nprint(42)")
_right("reconfigure", "import sys\nsys.stdout.reconfigure(encoding='utf-8', line_buffering=True)\nprint(42)")
_right("__del__ at exit", "class A:\n    def __del__(self): print(42)\na = A()")
_right("cycle with __del__ at exit", "class A:\n    def __del__(self): print(42)\na = A()\na.me = a")
_right("finally after sys.exit", "import sys\ntry: sys.exit(0)\nfinally: print(42)")
_right("sys.exit in function", "import sys\ndef main():\n    print(42)\n    sys.exit()\nmain()")
_right("quit", "print(42)\nquit()")
_right("os._exit after flush", "import os, sys\nprint(42)\nsys.stdout.flush()\nos._exit(0)")
_right("EOF loop", "t=0\nwhile True:\n    try:\n        t+=sum(map(int,input().split()))\n    except EOFError:\n        break\nprint(t-3)", SUM)
_right("for line in stdin", "import sys\nt=0\nfor line in sys.stdin:\n    t+=sum(map(int,line.split()))\nprint(t-3)", SUM)
_right("iter readline", "import sys\nfor l in iter(sys.stdin.readline, ''):\n    pass\nprint(sum(map(int,l.split())))", SUM)
_right("stdin.buffer.read", "import sys\nd=sys.stdin.buffer.read().split()\nprint(sum(map(int,d[1:])))", SUM)
_right("stdin.readlines", "import sys\nL=sys.stdin.readlines()\nprint(sum(map(int,L[1].split())))", SUM)
_right("input = stdin.readline", "import sys\ninput=sys.stdin.readline\nn=int(input())\nprint(sum(map(int,input().split())))", SUM)
_right("open(0)", "n,*a=map(int,open(0).read().split())\nprint(sum(a))", SUM)
_right("os.read loop", "import os\nd=b''\nwhile True:\n    x=os.read(0,3)\n    if not x: break\n    d+=x\nprint(sum(map(int,d.split()[1:])))", SUM)
_right("mmap of stdin", "import mmap\nm=mmap.mmap(0,0,access=mmap.ACCESS_READ)\nprint(sum(map(int,m[:].split()[1:])))", SUM)
_right("io.open(0,'rb')", "import io\nd=io.open(0,'rb',buffering=0).readall().split()\nprint(sum(map(int,d[1:])))", SUM)
_right("BytesIO of os.read fstat", "import io,os\ninput=io.BytesIO(os.read(0,os.fstat(0).st_size)).readline\nint(input())\nprint(sum(map(int,input().split())))", SUM)
_right("stdin.seek", "import sys\na=sys.stdin.read()\nsys.stdin.seek(0)\nprint(sum(map(int,sys.stdin.read().split()))-3)", SUM)
_right("input with prompt to stderr", "import sys\nprint('n?',file=sys.stderr)\nn=input()\nprint(sum(map(int,input().split())))", SUM)
_right("CRLF input", "n=int(input())\nprint(sum(map(int,input().split())), end='\\r\\n')", _stdio("3\r\n1 2 3\r\n","6"))
_right("CRLF expected", "input();print(6)\nprint(7)", _stdio("3\n","6\r\n7\r\n"))
_right("no trailing newline in", "print(int(input())+1)", _stdio("41","42"))
_right("print sep end", "print(*range(3), sep=' ', end=' \\n')", _stdio("","0 1 2"))
_right("unicode bytes that are no text", "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", _stdio("a\udc80b","a\udc80b"))
_right("bytes through text streams", "print(input())", _stdio("a\udc80b","a\udc80b"))
_right("BOM in source", "\ufeffprint(42)")
_right("CRLF source", "x = 40\r\nif x:\r\n    x += 2\r\nprint(x)\r\n")
_right("old Mac line ends", "x = 40\rprint(x + 2)\r")
_right("form feed and tabs", "\x0cx = 42\nif x:\n\tprint(x)\n")
_right("coding cookie", "# -*- coding: latin-1 -*-\nprint(42 if len('é') == 1 else 0)")
_right("shebang", "#!/usr/bin/env python3\nprint(42)")
_right("future import and docstring", "'''A solution.'''\nfrom __future__ import annotations\nclass A:\n    x: Unknown\nprint(42)")
_right("future import, prelude, comment", "'''Doc.'''\n# x\nfrom __future__ import annotations  # lazily\nclass A:\n    x: Unknown\nprint(answer)", StdioReference(cases=(("","42"),),prelude="answer = 42"))
_right("future import in parentheses, prelude", "from __future__ import (annotations)\nclass A:\n    x: Unknown\nprint(answer)", StdioReference(cases=(("","42"),),prelude="answer = 42"))
_right("heapq bisect", "import heapq,bisect\nh=[5,1,3]\nheapq.heapify(h)\na=[]\nwhile h: bisect.insort(a,heapq.heappop(h))\nprint(a[0]+41)")
_right("decimal fractions", "from decimal import *\nfrom fractions import Fraction\ngetcontext().prec=50\nprint(int(Decimal('41.5')+Decimal(str(float(Fraction(1,2))))))")
MEMOISED = "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(300000)\n@lru_cache(None)\ndef f(n): return 0 if n==0 else f(n-1)+1\nprint(42 if f(DEPTH)==DEPTH else 0)"
_right("lru_cache recursion", MEMOISED.replace("DEPTH", "400"))
# These interpreters have a limit of their own for functions in C that call themselves, such as the cache, and
# no program can change it: outside the sandbox this one ends in the same way.
if (3, 12) <= sys.version_info < (3, 14):
    _wrong("deep lru_cache recursion", MEMOISED.replace("DEPTH", "20000"), NOTHING, "runtime_error")
else:
    _right("deep lru_cache recursion", MEMOISED.replace("DEPTH", "20000"))
_right("recursion 200000 with generator bootstrap", "from types import GeneratorType\ndef bootstrap(f,stack=[]):\n    def w(*a,**k):\n        if stack: return f(*a,**k)\n        to=f(*a,**k)\n        while True:\n            if type(to) is GeneratorType:\n                stack.append(to); to=next(to)\n            else:\n                stack.pop()\n                if not stack: break\n                to=stack[-1].send(to)\n        return to\n    return w\n@bootstrap\ndef f(n):\n    if n==0: yield 0\n    yield (yield f(n-1))+1\nprint(42 if f(100000)==100000 else 0)")
for size in ("2**26","2**27","2**28","200*1024*1024","1<<29", "10**9"):
    _right(f"thread stack {size}", f"import sys,threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size({size})\ndef f(n): return 0 if n==0 else 1+f(n-1)\ndef main(): print(42 if f(30000)==30000 else 0)\nt=threading.Thread(target=main)\nt.start()\nt.join()")
_right("thread pool", "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as p: print(sum(p.map(int,'4'*10))+2)")
_right("thread not joined", "import threading\nthreading.Thread(target=lambda: print(42)).start()")
_right("daemon thread and timer", "import threading\nthreading.Timer(0.05, print, (42,)).start()")
_right("queue and 30 threads", "import threading,queue\nq=queue.Queue()\nts=[threading.Thread(target=q.put,args=(1,)) for _ in range(30)]\n[t.start() for t in ts];[t.join() for t in ts]\nprint(q.qsize()+12)")
_right("dataclass order slots", "from dataclasses import dataclass,field,replace,asdict\n@dataclass(order=True,slots=True,frozen=True)\nclass P:\n    x:int\n    y:list=field(default_factory=list,compare=False)\nprint(max(P(1),replace(P(2),x=42)).x)")
_right("typing zoo", "from typing import *\nT=TypeVar('T')\nclass B(Generic[T]):\n    def __init__(s,x:T): s.x:T=x\nclass Pt(NamedTuple):\n    x:int=42\nclass TD(TypedDict):\n    a:int\n@overload\ndef f(x:int)->int: ...\n@overload\ndef f(x:str)->str: ...\ndef f(x): return x\nprint(f(B[int](Pt().x).x))")
_right("enum flag", "from enum import *\nclass C(IntFlag):\n    A=auto();B=auto()\nprint(int(C.A|C.B)+39)")
_right("match statement walrus", "match [1,2]:\n    case [a,b] if (s:=a+b)==3: print(s+39)")
_right("random is usable", "import random\nrandom.seed(5)\nx=[random.randint(1,6) for _ in range(5)]\nrandom.shuffle(x)\nprint(42)")
_right("string statistics datetime", "import string,statistics,datetime,calendar\nassert statistics.median([1,2,3])==2\nassert datetime.datetime.strptime('2024-02-29','%Y-%m-%d').weekday()==3\nassert len(string.ascii_letters)==52\nprint(42)")
_right("modules that few programs need", "import pty, sqlite3, email.mime.text, xml.dom.minidom, multiprocessing.shared_memory, wsgiref.headers\nassert email.mime.text.MIMEText('x').as_string().endswith('x')\nassert sqlite3.connect(':memory:').execute('select 1+1').fetchone()==(2,)\nprint(42)")
_right("json csv io struct", "import json,csv,io,struct\nassert json.loads(json.dumps({'a':[1,None]}))=={'a':[1,None]}\nassert next(csv.reader(io.StringIO('a,b')))==['a','b']\nassert struct.unpack('<i',struct.pack('<i',7))[0]==7\nprint(42)")
_right("copy operator itertools", "import copy,operator,itertools,functools\nassert copy.deepcopy([[1]])==[[1]]\nassert functools.reduce(operator.mul,[1,2,3])==6\nassert list(itertools.accumulate([1,2]))==[1,3]\nprint(42)")
_right("re and textwrap", "import re,textwrap\nprint(re.sub(r'(\\d)x',r'\\g<1>2',textwrap.dedent('  4x')))")
_right("big int printing", "import sys\nsys.set_int_max_str_digits(0)\nx=2**100000\nprint(len(str(x)))", _stdio("","30103"))
_right("complex numpy-less matrix", "A=[[1,1],[1,0]]\ndef m(a,b,M=10**9+7): return [[sum(x*y for x,y in zip(r,c))%M for c in zip(*b)] for r in a]\nR=[[1,0],[0,1]]\nn=10**18\nwhile n:\n    if n&1: R=m(R,A)\n    A=m(A,A);n>>=1\nprint(R[0][1])", _stdio("","209783453"))
_right("hashlib zlib base64", "import hashlib,zlib,base64,binascii\nprint(42 if zlib.decompress(zlib.compress(b'x'))==b'x' and hashlib.sha256(b'').hexdigest().startswith('e3b0') else 0)")
_right("unittest in a program", "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1,1)\nunittest.main(argv=['x'],exit=False)\nprint(42)")
_right("doctest testmod", "import doctest\ndef f(x):\n    '''\n    >>> f(1)\n    2\n    '''\n    return x+1\nif __name__=='__main__':\n    doctest.testmod()\n    print(42)")
_right("signal alarm handler", "import signal\nsignal.signal(signal.SIGALRM,lambda *a:(_ for _ in ()).throw(TimeoutError))\nsignal.setitimer(signal.ITIMER_REAL,0.05)\ntry:\n    while True:\n        pass\nexcept TimeoutError: print(42)")
_right("time and perf_counter", "import time\nt=time.perf_counter();time.sleep(0.01)\nprint(42 if time.perf_counter()-t>0.009 and time.process_time()<5 and time.time()>1e9 else 0)")
_right("gc disable", "import gc\ngc.disable()\nx=[[i] for i in range(300000)]\ngc.collect()\nprint(42)")
_right("warnings and escapes", "import re\nprint(len(re.findall('\\d','42'))+40)")
_right("exec and eval", "exec('x=41')\nprint(eval('x+1'))")
_right("globals, locals, __name__", "def f(): return globals()['x']\nx=42\nprint(f() if __name__=='__main__' else 0)")
_right("import __main__", "x=42\nimport __main__\nprint(__main__.x)")
_right("sys.modules main pickle", "import pickle\nclass A: pass\na=A();a.x=42\nprint(pickle.loads(pickle.dumps(a)).x)")
_right("inspect signature", "import inspect\ndef f(a,b=2):pass\nprint(40+len(inspect.signature(f).parameters))")
_right("traceback print", "import traceback\ntry: 1/0\nexcept ZeroDivisionError: traceback.print_exc()\nprint(42)")
_right("stderr debugging 900 kB", "import sys\nfor i in range(9000): print('x'*99,file=sys.stderr)\nprint(42)")
_right("10 MB of input by words", "import sys\nd=sys.stdin.buffer.read().split()\nprint(len(d))", _stdio("1 "*5_000_000,"5000000"))
_right("10 MB input lines", "import sys\nn=0\nfor l in sys.stdin: n+=len(l)\nprint(n)", _stdio(("x"*99+"\n")*100_000,"10000000"))
_right("1.5 MB of output asked for", "print('x'*1_500_000)", _stdio("","x"*1_500_000))
_right("200000 lines of output", "for i in range(200000): print(i)", _stdio("","\n".join(map(str,range(200000)))))
_right("decimal spelled otherwise", "print(0.5, 1e-3)", _stdio("","0.50 0.001"))
_right("scratch or no scratch", "import tempfile\ntry:\n    with tempfile.TemporaryFile() as f: f.write(b'x')\nexcept OSError: pass\nprint(42)")
_right("sum of generator returned", "def main():\n    import sys\n    data=sys.stdin.read().split()\n    it=iter(data)\n    n=int(next(it))\n    return sum(int(next(it)) for _ in range(n))\nif __name__=='__main__': print(main())", SUM)
_right("class Solution main", "class Solution:\n    def solve(self,a): return sum(a)\ndef main():\n    n=int(input());a=list(map(int,input().split()))\n    print(Solution().solve(a))\nmain()", SUM)
_right("30 cases", "print(int(input())*2)", StdioReference(cases=tuple((str(i),str(2*i)) for i in range(30))))

# Functions.
GUARD = "def f(n): return n+1\nif __name__ == '__main__':\n    n = int(input('n: '))\n    print(f(n))\n"
_right("guard with input, calls", GUARD, _calls(((1,),2)))
_right("guard with input, asserts", GUARD, _asserts("assert f(1)==2"))
_right("guard with sys.exit(main())", "import sys\ndef f(n): return n+1\ndef main(): return 1\nif __name__=='__main__': sys.exit(main())", _calls(((1,),2)))
_right("guard with tests, asserts", "def f(n): return n+1\nif __name__=='__main__':\n    import unittest\n    unittest.main()", _asserts("assert f(1)==2"))
_right("dataclass in function form", "from dataclasses import dataclass\n@dataclass\nclass P:\n    x:int\ndef f(n): return P(n).x+1", _calls(((1,),2)))
_right("pickle in function form", "import pickle\nclass P: pass\ndef f(n):\n    p=P();p.n=n\n    return pickle.loads(pickle.dumps(p)).n+1", _calls(((1,),2)))
_right("Solution with typing", "from typing import List, Optional\nclass Solution:\n    def f(self, nums: List[int]) -> Optional[int]:\n        self.memo={}\n        return sum(nums)", _calls((([1,2],),3)))
_right("Solution staticmethod", "class Solution:\n    @staticmethod\n    def f(n): return n+1", _calls(((1,),2)))
_right("Solution classmethod and __init__", "class Solution:\n    def __init__(self): self.k=1\n    def f(self,n): return n+self.k", _calls(((1,),2),((2,),3)))
_right("lambda", "f=lambda n:n+1", _calls(((1,),2)))
_right("partial", "import functools,operator\nf=functools.partial(operator.add,1)", _calls(((1,),2)))
_right("cached function", "import functools\n@functools.cache\ndef f(n): return n if n<2 else f(n-1)+f(n-2)", _calls(((80,),23416728348467685)))
_right("callable object", "class F:\n    def __call__(self,n): return n+1\nf=F()", _calls(((1,),2)))
_right("generator function", "def f(n):\n    for i in range(n): yield i", _calls(((3,),[0,1,2])))
_right("returns None", "def f(n): pass", _calls(((3,),None)))
_right("mutates and returns its argument", "def f(a):\n    a.sort()\n    a.append(9)\n    return a", _calls((([2,1],),[1,2,9])))
_right("bool for bool", "def f(a): return a>1", _calls(((1,),False),((2,),True)))
_right("int for float", "def f(a): return a", _calls(((2,),2.0)))
_right("a long list returned", "def f(n): return list(range(n))", _calls(((120000,),list(range(120000)))))
_right("6 MB string returned", "def f(n): return 'x'*n", _calls(((6_000_000,),'x'*6_000_000)))
_right("big list under asserts", "def f(n): return list(range(n))", _asserts("assert f(150000)==list(range(150000))"))
_right("nested 50 deep", "def f(n):\n    x=[]\n    for _ in range(n): x=[x]\n    return x", _calls(((3,),[[[[]]]])))
_right("ListNode given", "class Solution:\n    def f(self, a):\n        h=None\n        for x in reversed(a): h=ListNode(x,h)\n        o=[]\n        while h: o.append(h.val);h=h.next\n        return o", _calls((([1,2],),[1,2]),prelude="class ListNode:\n    def __init__(self,val=0,next=None): self.val=val;self.next=next\n"))
_right("prelude signature, completion repeats function", "def f(n: int) -> int:\n    '''Doc.'''\n    return n+1\n", _asserts("def check(candidate):\n    assert candidate(1)==2\ncheck(f)", prelude="from typing import List\n\n\ndef f(n: int) -> int:\n    '''Doc.'''\n"))
_right("completion is the body", "    return n+1\n", _asserts("def check(candidate):\n    assert candidate(1)==2\n", prelude="def f(n: int) -> int:\n    '''Doc.'''\n"))
_right("asserts with floats and math", "def f(x): return x/3", _asserts("import math\nassert math.isclose(f(1),0.3333333333333,rel_tol=1e-9)\nassert abs(f(2)-2/3)<1e-9"))
_right("asserts on exceptions", "def f(x):\n    if x<0: raise ValueError('negative')\n    return x", _asserts("try:\n    f(-1)\nexcept ValueError as e:\n    assert 'neg' in str(e)\nelse: assert False\nassert f(1)==1"))
_right("asserts loop and random", "def f(x): return sorted(x)", _asserts("import random\ndef check(c):\n    for _ in range(50):\n        a=[random.randint(0,9) for _ in range(9)]\n        assert c(a)==sorted(a)\n"))
_right("asserts unittest style", "def f(x): return x+1", _asserts("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1),2)\nr=unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\nassert r.wasSuccessful()"))
_right("prints a lot under asserts", "def f(x):\n    print('x'*1000)\n    return x+1", _asserts("for i in range(100): assert f(i)==i+1"))
_right("custom exception class caught by base", "class E(KeyError): pass\ndef f(x): raise E('k')", _asserts("try: f(1)\nexcept KeyError: pass\nelse: assert 0"))
_right("asserts: with exception group", "def f(x):\n    raise ExceptionGroup('g',[ValueError('a')])", _asserts("try: f(3)\nexcept Exception as e: assert 'g' in str(e)\nelse: assert 0"))
_right("asserts: kwargs only", "def f(*,x=1,**k): return x+k.get('y',0)", _asserts("assert f(x=2,y=3)==5\nassert f()==1"))
_right("asserts: unittest.mock in tests", "def f(x): return x", _asserts("from unittest import mock\nassert f(1)==1"))
_right("asserts: set and frozenset and bytes", "def f(x): return x", _asserts("for v in ({1,2},frozenset({3}),b'ab',bytearray(b'x'),(1,(2,)),{'a':{1:None}},1j,-0.0,10**400,'\\ud800'):\n    assert f(v)==v, v"))
_right("asserts: many calls", "def f(x): return x*2", _asserts("for i in range(3000): assert f(i)==2*i"))
_right("asserts: nested function recursion", "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n==0 else 1+f(n-1)", _asserts("assert f(20000)==20000"))
_right("atexit raises", "import atexit\nprint('safe')\natexit.register(lambda: 1/0)", _stdio("", "safe"))
_right("program deletes main", "import sys\ndel sys.modules['__main__']\nprint('safe')", _stdio("", "safe"))
_right("sets main to none", "import sys\nsys.modules['__main__']=None\nprint('safe')", _stdio("", "safe"))

# Mistakes, and what they are called.
_wrong("None instead", "def f(n): print(n+1)", _calls(((1,),2)), "wrong_answer")
_wrong("async function", "async def f(n): return n+1", _calls(((1,),2)), "runtime_error")
_wrong("str for int", "def f(n): return '2'", _calls(((1,),2)), "wrong_answer")
_wrong("near float", "def f(n): return 0.30000000000000004", _calls(((1,),0.3)), "wrong_answer")
_wrong("too few args", "def f(): return 2", _calls(((1,),2)), "runtime_error")
_wrong("infinite recursion", "def f(n): return f(n)", _calls(((1,),2)), "runtime_error")
_wrong("object returned", "class A: pass\ndef f(n): return A()", _calls(((1,),2)), "runtime_error")
_wrong("function instead of class attr", "class Solution:\n    def g(self,n): return 2", _calls(((1,),2)), "no_result")
_wrong("needs numpy", "import numpy as np\nprint(np.sum([42]))", NOTHING, "runtime_error")
_wrong("prompt in output", "n=int(input('n: '))\nprint(6)", SUM, "wrong_answer")
_wrong("extra line", "print(42)\nprint()\nprint('x')", NOTHING, "wrong_answer")
_wrong("leading text", "print(' 42')", _stdio("","42"), "wrong_answer")
_wrong("memory hog", "x=[0]*10**9", NOTHING, "memory")
_wrong("reads too much", "input();input();input()", SUM, "runtime_error")
_wrong("Python 2", "print 42", NOTHING, "bad_format")
_wrong("indentation", "def f():\nreturn 1", NOTHING, "bad_format")
_wrong("raises SystemExit text", "import sys\nprint(42)\nsys.exit('bye')", NOTHING, "runtime_error")
_wrong("exits 1 after right", "print(42)\nexit(1)", NOTHING, "runtime_error")
_wrong("exception caught, then wrong, asserts", "def f(x): raise ValueError", _asserts("try: y=f(1)\nexcept ValueError: y=None\nassert y==2"), "wrong_answer", "runtime_error")
_wrong("thread raises, prints nothing", "import threading\nthreading.Thread(target=lambda:1/0).start()", NOTHING, "wrong_answer")
_wrong("prose", "The answer is 42.", NOTHING, "bad_format")
_wrong("blank lines only printed", "print();print()", NOTHING, "wrong_answer")
_wrong("prints 42.0", "print(42.0)", NOTHING, "wrong_answer")
_wrong("case 3 of 3 wrong", "n=int(input());print(n if n<3 else 0)", StdioReference(cases=(("1","1"),("2","2"),("3","3"))), "wrong_answer")
_wrong("NaN for number under asserts", "def f(x): return float('nan')", _asserts("assert not f(1)>1"), "wrong_answer")

_right("__del__ with globals", "import sys\nclass A:\n    def __init__(self): self.l=['42']\n    def __del__(self): sys.stdout.write('\\n'.join(self.l))\na = A()")
_right("writer object with globals", "import sys, io\nclass W(io.StringIO):\n    def close(self): sys.__stdout__.write('42'); super().close()\nsys.stdout = W()")
