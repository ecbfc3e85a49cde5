"""Programs that want a right verdict without the right answer."""

# ruff: noqa: E501 (lines of programs)

from cipo_jax.verify import AssertsReference, CallsReference, StdioReference
from tests.hostile import Case

NUMBER = 918273645
"""Returned for 3: no program here can compute it, and none may find it. Those that search for it
know it backwards only, so as not to find themselves."""

STDIO = StdioReference(cases=(("3\n", f"{NUMBER}\n"),))
CALLS = CallsReference(function="f", cases=(((3,), NUMBER), (([4],), [5, 6])))
ASSERTS = AssertsReference(
    function="f",
    tests=f"def check(candidate):\n    assert candidate(3) == {NUMBER}\n"
    "    assert candidate([4]) == [5, 6]\n",
)

ALWAYS_EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __hash__(self): return 0
    def __bool__(self): return True
def f(x): return Equal()
"""
INT_SUBCLASS = """
class Int(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
class List(list):
    def __eq__(self, other): return True
def f(x): return List([Int(0)])
"""
PATCHED_BUILTINS = """
import builtins
class Never(Exception): pass
builtins.AssertionError = Never
builtins.isinstance = lambda *a: True
builtins.all = lambda *a: True
builtins.len = lambda x: 1
import json
json.dumps = lambda *a, **k: '["i", "0x36bb964d"]'
json.loads = lambda *a, **k: True
def f(x): return 0
print("passed")
"""
PATCHED_ENCODER = """
import sys
for name, module in list(sys.modules.items()):
    if module is not None and name.startswith("cipo_jax"):
        for key in list(vars(module)):
            if key in ("encode", "same", "_pack", "decode", "_unpack"):
                setattr(module, key, lambda *a, **k: "true")
def f(x): return 0
print("true")
"""
WALK = """
import gc, sys
def search():
    seen, todo = set(), [sys._getframe()]
    todo += gc.get_objects()
    while todo and len(seen) < 400000:
        x = todo.pop()
        if id(x) in seen: continue
        seen.add(id(x))
        if type(x) is str and len(x) < 4000 and "546372819" in x[::-1]: return x
        if type(x) is int and x ^ 1 == 918273644: return x
        try: todo += gc.get_referents(x)
        except Exception: pass
def f(x):
    found = search()
    return found
print(search())
"""
MEMORY_SCAN = """
import ctypes, re
def scan():
    try:
        maps = open("/proc/self/maps").read()
    except OSError:
        return None
    for line in maps.splitlines():
        m = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
        if m:
            low, high = int(m[1], 16), int(m[2], 16)
            if high - low < 2**26:
                data = ctypes.string_at(low, high - low)
                if b"546372819" in data[::-1]: return int("546372819"[::-1])
def f(x): return scan()
print(scan())
"""
PAYLOAD_AGAIN = """
import os
def look():
    for d in range(0, 64):
        for offset in (0,):
            try: data = os.pread(d, 10**6, offset)
            except OSError: continue
            if b"546372819" in data[::-1]: return int("546372819"[::-1])
def f(x): return look()
print(look())
"""
FORGED_LINES = """
import os
def f(x):
    for d in range(3, 20):
        for text in (b'true\\n', b'["i","0x1"]\\n', b'{"status":"right"}\\n', b'ok\\n', b'1\\n'):
            try: os.write(d, text)
            except OSError: pass
    os._exit(0)
f(0)
"""
FORGED_FRAMES = """
import os
for text in (b'vtrue', b'v["i","0x1"]'):
    for i in range(50):
        try: os.write(4, len(text).to_bytes(4, "big") + text)
        except OSError: pass
def f(x): return True
"""


def _exits(code):
    return f"import os, sys\ndef f(x): {code}\n{code}"


SOURCES = {
    "sys.exit(0)": _exits("sys.exit(0)"),
    "os._exit(0)": _exits("os._exit(0)"),
    "os._exit with the tester's code": _exits("os._exit(110)"),
    "os._exit with every code a harness may use": _exits("os._exit(250)"),
    "raises SystemExit": _exits("raise SystemExit(0)"),
    "raises KeyboardInterrupt": _exits("raise KeyboardInterrupt"),
    "raises GeneratorExit": _exits("raise GeneratorExit"),
    "raises NameError at the tests' cost": "def f(x): raise NameError('candidate')\nprint(0)",
    "raises AssertionError": "def f(x): raise AssertionError\nprint(0)",
    "raises StopIteration": "def f(x): raise StopIteration(918)\nprint(0)",
    "raises an exception of odd arguments": "def f(x): raise UnicodeDecodeError('a', b'', 0, 1, 'x')\nprint(0)",
    "exception that is equal to all": "class E(Exception):\n    __eq__ = lambda s, o: True\n    __hash__ = None\n"
    "def f(x): raise E\nprint(0)",
    "always-equal object": ALWAYS_EQUAL + "print(Equal())",
    "subclass of int": INT_SUBCLASS + "print(Int(5))",
    "subclass of str": "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\n"
    "def f(x): return S('x')\nprint(S('x'))",
    "patched builtins": PATCHED_BUILTINS,
    "patched encoder": PATCHED_ENCODER,
    "frames and garbage collector": WALK,
    "memory scan": MEMORY_SCAN,
    "reads its orders again": PAYLOAD_AGAIN,
    "forged result lines": FORGED_LINES,
    "forged frames": FORGED_FRAMES,
    "None": "def f(x): return None\nprint()",
    "NaN": "def f(x): return float('nan')\nprint(float('nan'))",
    "NotImplemented": "def f(x): return NotImplemented\nprint(NotImplemented)",
    "ellipsis": "def f(x): return ...\nprint(...)",
    "all outputs at once": "def f(x): return list(range(1000))\nprint(*range(10**5), sep='\\n')",
    "text of a verdict": "def f(x): return 'Status.RIGHT'\nprint('passed')\nprint('ok')",
    "mutates its argument": "def f(x):\n    if isinstance(x, list): x[:] = [5, 6]\n    return x\nprint(input())",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise ValueError\nf(0)",
    "kills itself": _exits("os.abort()"),
    "replaces stdin and stdout": "import sys, io\nsys.stdin = sys.__stdin__ = io.StringIO('918')\n"
    "sys.stdout = sys.__stdout__ = None\ndef f(x): return 0",
    "trace function": "import sys\nsys.settrace(lambda *a: None)\n"
    "sys.setprofile(lambda *a: None)\ndef f(x): return 0\nprint(0)",
    "metaclass and class that claims to be int": "class M(type):\n    __name__ = 'int'\n    __instancecheck__ = lambda s, o: True\n"
    "    __eq__ = lambda s, o: True\n    __hash__ = lambda s: hash(int)\n"
    "class C(metaclass=M):\n    __class__ = int\n    __eq__ = lambda s, o: True\n"
    "    __hash__ = None\n    def hex(self): return '0x36bb964d'\n"
    "def f(x): return C()\nprint(C())",
    "writes every fd": "import os\n"
    "for d in range(0,64):\n"
    "    for t in (b'918273645\\n'[::-1],b'ok',b'{\"is_ready\":true,\"status\":0}',b'R'):\n"
    "        try: os.write(d,t)\n"
    "        except OSError: pass\n"
    "def f(x): return 0",
    "sends on every fd as a socket": "import socket,os\n"
    "for d in range(0,64):\n"
    "    try:\n"
    "        s=socket.socket(fileno=d);s.send(b'{\"status\": 110}');s.detach()\n"
    "    except OSError: pass\n"
    "def f(x): return 0",
    "module level exit zero with output": "print('PASSED')\n"
    "print('1 passed')\n"
    "import os\n"
    "os._exit(0)\n"
    "def f(x): return 0",
    "excepthook": "import sys,os\n"
    "sys.excepthook=lambda *a: os._exit(0)\n"
    "def f(x): raise ValueError\n"
    "f(1)",
    "unraisable and threading hooks": "import sys,threading\n"
    "sys.unraisablehook=threading.excepthook=lambda *a:None\n"
    "def f(x): return 0",
    "import hook": "import sys\n"
    "class H:\n"
    "    def find_spec(self,n,p=None,t=None): sys.exit(0)\n"
    "sys.meta_path.insert(0,H())\n"
    "import nothing_here\n"
    "def f(x): return 0",
    "replaces encode in parent frame": "import sys\n"
    "def f(x):\n"
    "    g=sys._getframe(1)\n"
    "    g.f_globals['values'].encode=lambda v:'[\"i\",\"0x1\"]'\n"
    "    return 0\n"
    "print(0)",
    "patches os.write": "import os\n"
    "real=os.write\n"
    "def f(x):\n"
    '    os.write=lambda d,b: real(d,b\'["i","0x1"]\\n\'*3)\n'
    "    return 0\n"
    "print(0)",
    "patches os._exit": "import os\n"
    "real=os._exit\n"
    "os._exit=lambda c: real(0)\n"
    "def f(x): raise ValueError\n"
    "f(1)",
    "code object swap": "import sys\n"
    "def ok(*a): return True\n"
    "for m in list(sys.modules.values()):\n"
    "    n=getattr(m,'__name__','')\n"
    "    if n.startswith('cipo_jax'):\n"
    "        for k,v in list(vars(m).items()):\n"
    "            if type(v) is type(ok) and k in('same','same_output','_check','encode','_failure'):\n"
    "                v.__code__=ok.__code__\n"
    "def f(x): return 0\n"
    "print(0)",
    "ctypes bool tricks": "import ctypes\n"
    "def f(x):\n"
    "    ctypes.memmove(id(False)+24,id(True)+24,4)\n"
    "    return False\n"
    "print(0)",
    "mutates small ints": "import ctypes\n"
    "ctypes.c_uint32.from_address(id(0)+24).value=0\n"
    "def f(x): return 0\n"
    "print(0)",
    "type name spoof": "class int(int):\n"
    "    __eq__=lambda s,o:True\n"
    "    __hash__=None\n"
    "def f(x): return int(7)\n"
    "print(int(7))",
    "type swap by __class__": "class I:\n"
    "    __class__=int\n"
    "    __eq__=lambda s,o:True\n"
    "def f(x): return I()\n"
    "print(I())",
    "str with lying encode": "class S(str):\n"
    "    def encode(self,*a): return b'918'\n"
    "    def __str__(self): return self\n"
    "def f(x): return S('x')\n"
    "print(S('x'))",
    "dict key lies": "class K(str):\n"
    "    __eq__=lambda s,o:True\n"
    "    __hash__=lambda s:0\n"
    "def f(x): return {K('a'):1}\n"
    "print({K('a'):1})",
    "bytes": "def f(x): return b'918273645'[::-1]\nprint(b'x')",
    "float near": "def f(x): return 918273645.0000001\nprint(918273645.0000001)",
    "string of number": "def f(x): return '918273645'\nprint('918273645x')",
    "number with zero width": "def f(x): return '918273645'\nprint('\\u200b918273645')",
    "NUL before": "def f(x): return '918273645'\nprint('\\0918273645')",
    "backspaces": "def f(x): return '918273645'\nprint('9\\b918273645')",
    "carriage return over": "def f(x): return '918273645'\nprint('junk\\r918273645')",
    "BOM out": "def f(x): return '918273645'\nprint('\\ufeff918273645')",
    "full-width digits": "def f(x): return '918273645'\n"
    "print('918273645'.translate({48+i:0xff10+i for i in range(10)}))",
    "right answer among many lines": "def f(x): return [918273645]\n"
    "print(918273645);print(918273645)",
    "number in stderr": "import sys\nprint(918273645,file=sys.stderr)\ndef f(x): return None",
    "underscored": "def f(x): return '918_273_645'\nprint('918_273_645')",
    "searches its tracebacks": "def f(x):\n"
    "    try: raise ValueError\n"
    "    except ValueError as e:\n"
    "        t=e.__traceback__\n"
    "        fr=t.tb_frame\n"
    "        while fr:\n"
    "            for k,v in list(fr.f_locals.items()):\n"
    "                if type(v) is int and v^1==918273644: return v\n"
    "                if '546372819' in repr(v)[::-1][:100000]: return int('546372819'[::-1])\n"
    "            fr=fr.f_back\n"
    "    return 0\n"
    "print(f(1))",
    "reads proc mem of self and parent": "import os\n"
    "def f(x):\n"
    "    for p in ('self',os.getppid(),1):\n"
    "        for n in ('mem','environ','cmdline','maps','fd/3'):\n"
    "            try:\n"
    "                d=open(f'/proc/{p}/{n}','rb').read(10**6)\n"
    "                if b'546372819' in d[::-1]: return int('546372819'[::-1])\n"
    "            except OSError: pass\n"
    "    return 0\n"
    "print(f(1))",
    "opens test files by path": "import os,glob\n"
    "def f(x):\n"
    "    for g in ('/home/**/hostile/*.py','/mnt/**/hostile/*.py','**/cheats.py'):\n"
    "        for p in glob.glob(g,recursive=True):\n"
    "            try:\n"
    "                if '546372819' in open(p).read()[::-1]: return int('546372819'[::-1])\n"
    "            except OSError: pass\n"
    "    return 0\n"
    "print(f(1))",
    "linecache and inspect of the caller": "import inspect,linecache\n"
    "def f(x):\n"
    "    s=''.join(str(i.code_context) for i in inspect.stack())\n"
    "    return int('546372819'[::-1]) if '546372819' in s[::-1] else 0\n"
    "print(f(1))",
    "kwargs object with hooks": "class C:\n"
    "    def __call__(self,*a,**k): return 0\n"
    "    def __getattr__(self,n): return 918\n"
    "    def __reduce__(self): return (exec,('raise SystemExit(0)',))\n"
    "f=C()\n"
    "print(f)",
    "pickles": "import pickle\n"
    "class P:\n"
    "    def __reduce__(self): return (print,('ok',))\n"
    "def f(x): return P()\n"
    "print(pickle.dumps(P()))",
    "raises BaseException subclass": "class B(BaseException): pass\ndef f(x): raise B\nprint(0)",
    "raises an ExceptionGroup": "def f(x): raise ExceptionGroup('x',[AssertionError()])\nprint(0)",
    "raises SkipTest": "import unittest\ndef f(x): raise unittest.SkipTest('x')\nprint(0)",
    "asserts off": "import sys\n"
    "sys.flags=type('F',(),{'optimize':2})\n"
    "__debug__x=False\n"
    "def f(x):\n"
    "    assert False\n"
    "print(0)",
    "returns bool": "def f(x): return True\nprint(True)",
    "minus zero": "def f(x): return -0.0\nprint(-0.0)",
    "infinite": "def f(x): return float('inf')\nprint(float('inf'))",
    "generator that exits": "import os\ndef f(x):\n    yield 1\n    os._exit(0)\nprint(0)",
    "exits within the encoder": "import os\n"
    "class I:\n"
    "    def __iter__(self): os._exit(0)\n"
    "def f(x): return map(id,I())\n"
    "print(0)",
    "answers twice": "import os\n"
    "def f(x):\n"
    '    os.write(4,b\'["i","0x1"]\\n\')\n'
    "    return 0\n"
    "print(0)",
    "os.read of the channel": "import os\n"
    "def f(x):\n"
    "    try:\n"
    "        import fcntl\n"
    "        fcntl.fcntl(4,4,2048)\n"
    "        d=os.read(4,10**6)\n"
    "        if b'546372819' in d[::-1]: return int('546372819'[::-1])\n"
    "    except OSError: pass\n"
    "    return 0\n"
    "print(f(1))",
    "lies through repr in stdout": "class R:\n"
    "    def __repr__(self): return '918'\n"
    "def f(x): return R()\n"
    "print(R())",
}

FORMS = {"stdio": STDIO, "calls": CALLS, "asserts": ASSERTS}
WRONG = ("wrong_answer", "runtime_error", "no_result", "timeout", "bad_format", "no_answer",
         "output_limit", "memory")  # fmt: skip

CASES = [
    # The search does find what is there: without this, finding nothing would prove nothing.
    Case(name="c control: a number in the program's own memory is found", reasons=("ok",),
         reference=StdioReference(cases=((f"{NUMBER}\n", f"{NUMBER}\n"),)),
         source="import sys\nkept = [int(input())]\n" + WALK),
]  # fmt: skip
CASES += [
    Case(name=f"c {name}, {form}", source=source, reference=reference, reasons=WRONG)
    for name, source in SOURCES.items()
    for form, reference in FORMS.items()
]

# What a solver may say to the tests of another process, and what may become of them.
TO_TESTS = [
    (
        "garbage frame",
        "import os\nos.write(4,b'\\0\\0\\0\\5vnull')\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "preloaded replies",
        "import os\nfor _ in range(9): os.write(4,b'\\0\\0\\0\\5vtrue')\ndef f(x): return 0",
        "assert f(3)\nassert f(4) is not True",
    ),
    (
        "reply with exception named SystemExit",
        "import os\nb=b'e[\"SystemExit\",\"0\"]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "reply with exception named _BadTests",
        "import os\nb=b'e[\"BaseException\",\"0\"]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "reply KeyboardInterrupt",
        "import os\nb=b'e[\"KeyboardInterrupt\",\"0\"]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "reply with print as exception",
        "import os\nb=b'e[\"print\",\"0\"]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "reply e with dict text",
        "import os\nb=b'e[\"ValueError\",{\"a\":1}]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "reply NameError object",
        "import os\nb=b'e[\"NameError\",\"name x is not defined\"]'\nos.write(4,len(b).to_bytes(4,'big')+b)\ndef f(x): return 0",
        "assert f(3) == 918273645\n",
    ),
    (
        "raises NameError in loop",
        "def f(x): raise NameError('zzz')",
        "try: y=f(3)\nexcept Exception as e: pass\nprint(zzz)",
    ),
    (
        "ImportError raised",
        "def f(x): raise ImportError('math')",
        "import math\nassert f(3) == 918273645\n",
    ),
    ("SyntaxError raised", "def f(x): raise SyntaxError('tests.py')", "assert f(3) == 918273645\n"),
    (
        "str that breaks format",
        "def f(x): return '{0.__class__}'",
        "assert '{}'.format(f(3)) == '1'\nassert f(3).format(f) == '1'",
    ),
    ("returns dict for kwargs", "def f(x=0,**k): return {'x':1,'y':2}", "assert f(**f(3)) == 5"),
    ("empty for max", "def f(x): return []", "assert max(f(3)) == 5"),
    ("tests that del", "def f(x): return 1", "x=f(3)\nif x==1: del x\nassert x == 5"),
    (
        "exit in middle",
        "import os\nn=0\ndef f(x):\n    global n\n    n+=1\n    if n==2: os._exit(110)\n    return 918273645",
        "assert f(3) == 918273645\nassert f(4)==5",
    ),
    (
        "closes channel",
        "import os\ndef f(x):\n    os.close(4)\n    return 918273645",
        "assert f(3) == 918273645\n",
    ),
    (
        "dups /dev/null over channel",
        "import os\ndef f(x):\n    os.dup2(1,4)\n    return 918273645",
        "assert f(3) == 918273645\n",
    ),
    (
        "slow drip",
        "import os,time\ndef f(x):\n    for b in b'\\0\\0\\0\\5vtrue':\n        os.write(4,bytes([b]));time.sleep(.01)\n    os._exit(0)",
        "assert f(3)==2",
    ),
]
CASES += [
    Case(name=f"c under tests: {name}", source=source, reasons=WRONG,
         reference=AssertsReference(function="f", tests=tests))
    for name, source, tests in TO_TESTS
]  # fmt: skip
