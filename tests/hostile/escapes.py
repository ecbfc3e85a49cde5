"""Programs that want out: to the files, the network, the other processes, the kernel.

Each prints `safe` after its attempts have all been refused, and what got through otherwise.
"""

# ruff: noqa: E501 (lines of programs)

from cipo_jax.verify import StdioReference
from tests.hostile import SAFE, Case

TRY = """
import ctypes, os, socket, sys
escaped = []
def attempt(what, action):
    try:
        if action() is not False: escaped.append(what)
    except Exception: pass
def call(x86, arm, *args):
    number = x86 if os.uname().machine == "x86_64" else arm
    return ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *args) >= 0
"""
END = "\nprint('safe' if not escaped else 'ESCAPED ' + ' '.join(escaped))"


def _case(name, body, *reasons):
    return Case(name=name, source=TRY + body + END, reference=SAFE, reasons=reasons or ("ok",))


CASES = [
    _case("e01 signals to the parent",
          "attempt('term', lambda: os.kill(os.getppid(), 15))\n"
          "attempt('zero', lambda: os.kill(os.getppid(), 0))\n"
          "attempt('group', lambda: os.killpg(os.getppid(), 0))"),
    _case("e02 signals to everybody", "attempt('all', lambda: os.kill(-1, 0))"),
    _case("e03 signals by raw calls",
          "attempt('tkill', lambda: call(200, 130, os.getppid(), 0))\n"
          "attempt('tgkill', lambda: call(234, 131, os.getppid(), os.getppid(), 0))\n"
          "attempt('sigqueue', lambda: call(129, 138, os.getppid(), 0, None))\n"
          "attempt('pidfd', lambda: call(434, 434, os.getppid(), 0))"),
    _case("e04 signals by way of a descriptor's owner",
          "import fcntl\nr, w = os.pipe()\n"
          "attempt('setown', lambda: fcntl.fcntl(r, 8, os.getppid()))\n"
          "attempt('setsig', lambda: fcntl.fcntl(r, 10, 15))"),
    _case("e05 TCP to a listener", "attempt('tcp', lambda: socket.create_connection("
          "('127.0.0.1', PORT), 1).send(b'x'))"),
    _case("e06 UDP", "attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
          ".sendto(b'x', ('127.0.0.1', PORT)))"),
    _case("e07 abstract Unix socket",
          "def f():\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0cipo-hostile-PORT')\n"
          "attempt('abstract', f)"),
    _case("e08 sockets of every family",
          "for f in range(0, 46):\n    for k in (1, 2, 3):\n"
          "        attempt(f'family{f}', lambda: call(41, 198, f, k, 0))"),
    _case("e09 socket pair and listening",
          "attempt('pair', lambda: socket.socketpair())\n"
          "attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))"),
    _case("e10 reads the canary", "attempt('read', lambda: open('SECRET').read())\n"
          "attempt('list', lambda: os.listdir('CANARY'))"),
    _case("e11 reads system files",
          "for p in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/proc/cpuinfo',\n"
          "          '/proc/self/maps', '/proc/self/environ', '/proc/1/cmdline', '/sys/kernel'):\n"
          "    attempt(p, lambda: open(p).read(1))"),
    _case("e12 lists folders",
          "for p, name in (('/etc', 'passwd'), ('/proc', '1'), ('/sys', 'kernel'), ('/var', 'tmp'),\n"
          "                ('/usr/bin', 'env'), ('/', 'sys'), ('/dev', 'shm'), ('/root', '.bashrc')):\n"
          "    attempt(p, lambda: name in os.listdir(p))\n"
          "attempt('home', lambda: bool(os.listdir('/home')))\n"
          "attempt('stat', lambda: os.stat('CANARY') if os.getcwd() == '/tmp' else False)"),
    _case("e13 writes the canary",
          "attempt('write', lambda: open('SECRET', 'w').write('x'))\n"
          "attempt('append', lambda: open('SECRET', 'a').write('x'))\n"
          "attempt('make', lambda: open('CANARY/new', 'x'))\n"
          "attempt('mkdir', lambda: os.mkdir('CANARY/folder'))"),
    _case("e14 removes and renames the canary",
          "attempt('unlink', lambda: os.unlink('SECRET'))\n"
          "attempt('rename', lambda: os.rename('SECRET', 'CANARY/moved'))\n"
          "attempt('link', lambda: os.link('SECRET', 'CANARY/linked'))\n"
          "attempt('symlink', lambda: os.symlink('SECRET', 'CANARY/symbolic'))\n"
          "attempt('truncate', lambda: os.truncate('SECRET', 0))"),
    _case("e15 changes attributes of the canary",
          "attempt('chmod', lambda: os.chmod('SECRET', 0o600))\n"
          "attempt('utime', lambda: os.utime('SECRET', (0, 0)))\n"
          "attempt('chown', lambda: os.chown('SECRET', os.getuid(), -1))\n"
          "attempt('setxattr', lambda: os.setxattr('SECRET', 'user.x', b'1'))\n"
          "attempt('chmod folder', lambda: os.chmod('CANARY', 0o700))"),
    _case("e16 writes elsewhere",
          "for p in ('/', '/etc', '/var/tmp', '/dev/shm', '/home', '/run', '/usr/lib', '/dev'):\n"
          "    attempt(p, lambda: os.close(os.open(p + '/cipo-hostile', os.O_CREAT | os.O_RDWR)))"),
    _case("e17 the environment holds no secret",
          "attempt('environ', lambda: any('hunter2' in v for v in os.environ.values()) or False)\n"
          "attempt('environb', lambda: ctypes.CDLL(None).getenv(b'CIPO_HOSTILE_SECRET') != 0)"),
    _case("e18 the parent's memory and environment",
          "for p in (os.getppid(), 1):\n    for f in ('environ', 'mem', 'maps', 'cmdline', 'fd'):\n"
          "        attempt(f, lambda: open(f'/proc/{p}/{f}', 'rb').read(1))"),
    _case("e19 ptrace and process_vm",
          "attempt('attach', lambda: call(101, 117, 16, os.getppid(), 0, 0))\n"
          "attempt('seize', lambda: call(101, 117, 0x4206, os.getppid(), 0, 0))\n"
          "attempt('traceme', lambda: call(101, 117, 0, 0, 0, 0))\n"
          "attempt('vm_readv', lambda: call(310, 270, os.getppid(), None, 0, None, 0, 0))\n"
          "attempt('vm_writev', lambda: call(311, 271, os.getppid(), None, 0, None, 0, 0))"),
    _case("e20 starts a program",
          "import subprocess\n"
          "attempt('run', lambda: subprocess.run(['/bin/true']))\n"
          "attempt('system', lambda: os.system('true') == 0)\n"
          "attempt('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {}))\n"
          "attempt('exec', lambda: os.execv('/bin/true', ['true']))\n"
          "attempt('popen', lambda: os.popen('echo x').read() == 'x\\n')"),
    _case("e21 forks",
          "def f(make):\n    pid = make()\n    if pid == 0: os._exit(0)\n"
          "attempt('fork', lambda: f(os.fork))\n"
          "attempt('forkpty', lambda: f(lambda: os.forkpty()[0]))\n"
          "attempt('clone', lambda: call(56, 220, 17, 0, 0, 0, 0))\n"
          "attempt('vfork', lambda: call(58, 999, 0))\n"
          "attempt('clone3', lambda: call(435, 435, (ctypes.c_uint64 * 11)(), 88))"),
    _case("e22 multiprocessing",
          "import multiprocessing\n"
          "attempt('process', lambda: multiprocessing.Process(target=print).start())\n"
          "attempt('pool', lambda: multiprocessing.Pool(1))"),
    _case("e23 namespaces and mounts",
          "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000):\n"
          "    attempt(f'unshare{flag:x}', lambda: call(272, 97, ctypes.c_int(flag)))\n"
          "attempt('mount', lambda: call(165, 40, b'x', b'/tmp', b'tmpfs', 0, 0))\n"
          "attempt('umount', lambda: call(166, 39, b'/tmp', 0))\n"
          "attempt('chroot', lambda: os.chroot('/tmp'))\n"
          "attempt('pivot', lambda: call(155, 41, b'/tmp', b'/tmp'))\n"
          "attempt('setns', lambda: call(308, 268, 0, 0))"),
    _case("e24 kernel subsystems",
          "attempt('io_uring', lambda: call(425, 425, 8, (ctypes.c_char * 120)()))\n"
          "attempt('bpf', lambda: call(321, 280, 0, (ctypes.c_char * 120)(), 120))\n"
          "attempt('keyring', lambda: call(250, 219, 0, -3, 1))\n"
          "attempt('add_key', lambda: call(248, 217, b'user', b'x', b'y', 1, -3))\n"
          "attempt('userfaultfd', lambda: call(323, 282, 0))\n"
          "attempt('perf', lambda: call(298, 241, (ctypes.c_char * 120)(), 0, -1, -1, 0))\n"
          "attempt('fanotify', lambda: call(300, 262, 0, 0))\n"
          "attempt('inotify', lambda: call(294, 26, 0))\n"
          "attempt('memfd', lambda: os.memfd_create('x'))\n"
          "attempt('shmget', lambda: call(29, 194, 0, 4096, 0o1600))\n"
          "attempt('msgget', lambda: call(68, 186, 0, 0o1600))\n"
          "attempt('semget', lambda: call(64, 190, 0, 1, 0o1600))\n"
          "attempt('mq', lambda: call(240, 180, b'x', os.O_CREAT | 2, 0o600, None))\n"
          "attempt('name_to_handle', lambda: call(303, 264, -100, b'/', (ctypes.c_char * 200)(),"
          " (ctypes.c_int * 1)(), 0))"),
    _case("e25 gains rights",
          "attempt('setuid', lambda: os.setuid(0) if os.getuid() else False)\n"
          "attempt('setresuid', lambda: os.setresuid(0, 0, 0))\n"
          "attempt('setgroups', lambda: os.setgroups([0]))\n"
          "attempt('capset', lambda: call(126, 91, (ctypes.c_uint32 * 2)(0x20080522, 0),"
          " (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)))\n"
          "attempt('dumpable', lambda: call(157, 167, 4, 1, 0, 0, 0))\n"
          "attempt('pdeathsig', lambda: call(157, 167, 1, 0, 0, 0, 0))\n"
          "attempt('personality', lambda: call(135, 92, 0x0040000))"),
    _case("e26 lifts its limits",
          "import resource\n"
          "attempt('as', lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))\n"
          "attempt('cpu', lambda: resource.setrlimit(resource.RLIMIT_CPU, (-1, -1)))\n"
          "attempt('fsize', lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)))\n"
          "attempt('parent', lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1)))"),
    _case("e27 priorities and processors",
          "attempt('nice up', lambda: os.nice(-5))\n"
          "attempt('parent', lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))\n"
          "attempt('affinity', lambda: os.sched_setaffinity(os.getppid(), {0}))\n"
          "attempt('scheduler', lambda: os.sched_setscheduler(0, os.SCHED_FIFO,"
          " os.sched_param(1)))"),
    _case("e28 machine code in the other instruction set",
          "import mmap\n"
          "if os.uname().machine == 'x86_64':\n"
          "    m = mmap.mmap(-1, 4096, prot=7)\n"
          "    m.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
          "    a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
          "    attempt('int80', lambda: ctypes.CFUNCTYPE(ctypes.c_int)(a)() > 0)\n"
          "else:\n    os.abort()", "runtime_error"),
    _case("e29 x32 calls", "os.abort() if os.uname().machine != 'x86_64' else "
          "attempt('x32', lambda: call(0x40000000 + 39, 0))", "runtime_error"),
    _case("e30 devices",
          "for p in ('/dev/mem', '/dev/kmem', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/fuse',\n"
          "          '/dev/tty', '/dev/ptmx', '/dev/net/tun', '/dev/accel0', '/dev/nvidia0'):\n"
          "    attempt(p, lambda: open(p, 'rb'))"),
    _case("e31 typing into the terminal",
          "import fcntl, termios\n"
          "for fd in range(3): attempt('tiocsti', lambda: fcntl.ioctl(fd, 0x5412, b'x'))"),
    _case("e32 walks up from its folder",
          "def f():\n    for i in range(30): os.chdir('..')\n"
          "    return os.path.exists('etc/passwd') and bool(open('etc/passwd').read())\n"
          "attempt('up', f)"),
    _case("e33 descriptors left open",
          "import stat\n"
          "for d in range(5, 256):\n"
          "    attempt(f'fd{d}', lambda: os.fstat(d))"),
    _case("e34 file handles of its standard streams",
          "for d in range(5):\n    for p in ('/proc/self/fd/%d', '/dev/fd/%d'):\n"
          "        attempt(p % d, lambda: open(p % d + '/../../../etc/passwd').read(1))"),
    _case("e35 symbolic links in the scratch folder",
          "def f():\n    os.symlink('/etc/passwd', 'x')\n    return bool(open('x').read())\n"
          "attempt('symlink', f)"),
    _case("e36 new filters and Landlock of its own",
          "attempt('seccomp', lambda: call(317, 277, 1, 0, None))\n"
          "attempt('landlock', lambda: call(444, 444, None, 0, 1))\n"
          "attempt('prctl', lambda: call(157, 167, 22, 1, 0, 0, 0))"),
    _case("e37 clocks, host name, reboot, modules, swap",
          "import time\n"
          "attempt('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))\n"
          "attempt('hostname', lambda: socket.sethostname('x'))\n"
          "attempt('modules', lambda: call(175, 105, None, 0, b''))\n"
          "attempt('swapoff', lambda: call(168, 225, b'/nope'))\n"
          "attempt('syslog', lambda: call(103, 116, 10, None, 0))"),
    _case("e38 what another program left",
          "import glob\nattempt('left', lambda: bool(os.listdir('.') if os.getcwd() == '/tmp' "
          "else glob.glob('/tmp/left-here')))\n"
          "try: open('left-here', 'w').write('x')\nexcept OSError: pass"),
    _case("e40 machine code that calls the kernel by itself",
          # socket(AF_INET, SOCK_STREAM, 0), and kill(parent, 0): the registers, the call, return.
          "import mmap\n"
          "def enter(x86, arm, first, second):\n"
          "    if os.uname().machine == 'x86_64':\n"
          "        code = (b'\\xbf' + first.to_bytes(4, 'little') + b'\\xbe' + second.to_bytes(4, 'little')\n"
          "                + b'\\x31\\xd2\\xb8' + x86.to_bytes(4, 'little') + b'\\x0f\\x05\\xc3')\n"
          "    else:\n"
          "        def load(register, value): return (0xd2800000 | (value & 0xffff) << 5 | register).to_bytes(4, 'little')\n"
          "        code = (load(0, first) + load(1, second) + load(2, 0) + load(8, arm)\n"
          "                + bytes.fromhex('010000d4c0035fd6'))\n"
          "    m = mmap.mmap(-1, 4096, prot=7)\n"
          "    m.write(code)\n"
          "    a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
          "    return ctypes.CFUNCTYPE(ctypes.c_long)(a)()\n"
          "attempt('getpid', lambda: enter(39, 172, 0, 0) != os.getpid())\n"
          "attempt('socket', lambda: enter(41, 198, 2, 1) >= 0)\n"
          "attempt('kill', lambda: enter(62, 129, os.getppid(), 0) >= 0)\n"
          "attempt('memfd', lambda: enter(319, 279, 0, 0) >= 0)"),
    Case(name="e41 what its own earlier case left", reasons=("ok",),
         reference=StdioReference(cases=(("1", "safe"), ("2", "safe"), ("3", "safe"))),
         source=TRY + "attempt('left', lambda: bool(os.listdir('.')) if os.getcwd() == '/tmp' else False)\n"
         "attempt('mark', lambda: os.path.exists('mark') or os.path.exists('/tmp/cipo-mark'))\n"
         "for p in ('mark', '/tmp/cipo-mark', '/dev/shm/cipo-mark', '/var/tmp/cipo-mark'):\n"
         "    try: open(p, 'w').write(input())\n    except (OSError, EOFError): pass\n"
         "try: os.makedirs('a/' * 200); os.chmod('a', 0)\nexcept OSError: pass\n" + END),
    _case("e39 late imports of foreign packages",
          "def f():\n    import jax\n"
          "def g():\n    import numpy\n"
          "attempt('jax', f)\nattempt('numpy', g)"),
    _case("e42 vsock, netlink, packet, alg, xdp, kcm",
          "for f in (40,16,17,38,44,41,42,43,29,31):\n"
          "    for k in (1,2,3,5):\n"
          "        attempt(f'f{f}.{k}',lambda: call(41,198,f,k,0))"),
    _case("e43 socketpair and SCM_RIGHTS",
          "attempt('pair',lambda: call(53,199,1,1,0,(ctypes.c_int*2)()))\n"
          "attempt('sendmsg',lambda: call(46,211,4,(ctypes.c_char*56)(),0))\n"
          "attempt('recvmsg',lambda: call(47,212,4,(ctypes.c_char*56)(),0))"),
    _case("e44 connect, bind, accept on its descriptors",
          "for d in range(6):\n"
          "    attempt('bind',lambda: call(49,200,d,(ctypes.c_char*110)(1,0,0,65),110))\n"
          "    attempt('connect',lambda: call(42,203,d,(ctypes.c_char*110)(1,0,0,65),110))\n"
          "    attempt('listen',lambda: call(50,201,d,1))\n"
          "    attempt('accept',lambda: call(43,202,d,None,None))"),
    _case("e45 openat2 and open_by_handle",
          "attempt('openat2',lambda: call(437,437,-100,b'/etc/passwd',(ctypes.c_uint64*3)(),24))\n"
          "attempt('handle',lambda: call(304,265,-100,(ctypes.c_char*200)(),0))\n"
          "attempt('open_tree',lambda: call(428,428,-100,b'/',0))\n"
          "attempt('fsopen',lambda: call(430,430,b'tmpfs',0))\n"
          "attempt('move_mount',lambda: call(429,429,-100,b'/',-100,b'/tmp',0))\n"
          "attempt('mount_setattr',lambda: call(442,442,-100,b'/',0,None,0))"),
    _case("e46 execveat, memfd_secret, exec of a descriptor",
          "attempt('execveat',lambda: call(322,281,0,b'',None,None,0x1000))\n"
          "attempt('memfd_secret',lambda: call(447,447,0))\n"
          "attempt('execfd',lambda: os.execve(0,['x'],{}))\n"
          "attempt('fexec ld',lambda: os.execv('/lib64/ld-linux-x86-64.so.2',['ld','/bin/true']))"),
    _case("e47 clone3 with arguments of a process",
          "import struct\n"
          "a=(ctypes.c_char*88).from_buffer_copy(struct.pack('<11Q',0,0,0,0,17,0,0,0,0,0,0))\n"
          "attempt('clone3',lambda: call(435,435,a,88))\n"
          "for fl in (0x10000000|17,0x20000000|17,0x100|17,0x4000|0x100|17,0x200|17,0x8000|17): attempt(f'clone{fl:x}',lambda: call(56,220,fl,0,0,0,0))"),
    _case("e48 threads with new namespaces",
          "for fl in (0x20000,0x10000000,0x20000000,0x40000000,0x2000000,0x8000000,0x4000000):\n"
          "    attempt(f'{fl:x}',lambda: call(56,220,0x10000|0x800|0x100|fl,0,0,0,0))"),
    _case("e49 process handles",
          "attempt('pidfd_open',lambda: call(434,434,1,0))\n"
          "attempt('pidfd_send',lambda: call(424,424,0,9,None,0))\n"
          "attempt('pidfd_getfd',lambda: call(438,438,0,0,0))\n"
          "attempt('process_madvise',lambda: call(440,440,0,None,0,0,0))\n"
          "attempt('process_mrelease',lambda: call(448,448,0,0))\n"
          "attempt('kcmp',lambda: call(312,272,1,os.getpid(),0,0,0))\n"
          "attempt('get_robust',lambda: call(274,100,os.getppid(),(ctypes.c_long*1)(),(ctypes.c_long*1)()))"),
    _case("e50 migrate pages, move pages, mbind, numa",
          "attempt('migrate',lambda: call(256,238,os.getppid(),0,None,None))\n"
          "attempt('move',lambda: call(279,239,os.getppid(),0,None,None,None,0))\n"
          "attempt('mbind',lambda: call(237,235,0,0,0,None,0,0))\n"
          "attempt('set_mempolicy',lambda: call(238,237,0,None,0))"),
    _case("e51 quota, acct, swap, kexec, iopl",
          "attempt('quotactl',lambda: call(179,60,0,None,0,None))\n"
          "attempt('acct',lambda: call(163,89,None))\n"
          "attempt('kexec',lambda: call(246,104,0,0,None,0))\n"
          "attempt('iopl',lambda: call(172,999,3))\n"
          "attempt('ioperm',lambda: call(173,999,0,10,1))\n"
          "attempt('modify_ldt',lambda: call(154,999,0,(ctypes.c_char*16)(),16))\n"
          "attempt('vhangup',lambda: call(153,58))\n"
          "attempt('finit_module',lambda: call(313,273,0,b'',0))\n"
          "attempt('delete_module',lambda: call(176,106,b'x',0))\n"
          "attempt('sethostname',lambda: call(170,161,b'x',1))\n"
          "attempt('settimeofday',lambda: call(164,170,None,(ctypes.c_int*2)()))\n"
          "attempt('adjtimex',lambda: call(159,171,(ctypes.c_char*208)(1)))\n"
          "attempt('lookup_dcookie',lambda: call(212,18,0,(ctypes.c_char*100)(),100))\n"
          "attempt('uselib',lambda: call(134,999,b'/x'))"),
    _case("e52 inherited descriptors by duplication",
          "import fcntl\n"
          "for d in range(5,1024):\n"
          "    attempt(f'dup{d}',lambda: os.dup(d))\n"
          "    attempt(f'fcntl{d}',lambda: fcntl.fcntl(d,1))"),
    _case("e53 signals to every id",
          "for p in [1,2,os.getppid(),-1,0,-os.getpid()]+list(range(3,60)):\n"
          "    attempt(f'kill{p}',lambda: os.kill(p,0) if p!=os.getpid() else False)"),
    _case("e54 async signals through a descriptor",
          "import fcntl\n"
          "for d in range(5):\n"
          "    for c in (8,10,15,1025,1026,1033,1036,1031):\n"
          "        attempt(f'{d}.{c}',lambda: fcntl.fcntl(d,c,1) if c!=1026 else call(72,25,d,c,0x80000001))\n"
          "    attempt(f'fioasync{d}',lambda: call(16,29,d,0x5452,(ctypes.c_int*1)(1)))\n"
          "    attempt(f'fiosetown{d}',lambda: call(16,29,d,0x8901,(ctypes.c_int*1)(1)))"),
    _case("e55 library files can't be changed",
          "for d in (os.path.dirname(os.__file__),'/usr/lib','/lib'):\n"
          "    attempt('x '+d,lambda: open(d+'/evil.py','w'))\n"
          "attempt('os',lambda: open(os.__file__,'r+'))\n"
          "attempt('append',lambda: open(os.__file__,'a'))\n"
          "attempt('trunc',lambda: os.truncate(os.__file__,0))\n"
          "attempt('unlink',lambda: os.unlink(os.__file__))\n"
          "attempt('touch',lambda: os.utime(os.__file__))"),
    _case("e56 fd-relative attributes",
          "for d in range(3):\n"
          "    attempt('chown',lambda: os.fchown(d,0,0))\n"
          "    attempt('chmod',lambda: os.fchmod(d,0o777))\n"
          "    attempt('utime',lambda: os.utime(d,(0,0)))\n"
          "    attempt('xattr',lambda: os.setxattr(d,'user.x',b'1'))\n"
          "    attempt('fchmodat2',lambda: call(452,452,d,b'',0o777,0x1000))\n"
          "    attempt('fsetattr',lambda: call(16,29,d,0x40086602,(ctypes.c_long*1)(0)))"),
    _case("e57 device nodes and fifos",
          "attempt('mknod',lambda: os.mknod('x',0o600|0o20000,os.makedev(1,1)))\n"
          "attempt('fifo',lambda: os.mkfifo('f'))\n"
          "attempt('sock',lambda: os.mknod('s',0o140600))"),
    _case("e58 setuid bits in scratch",
          "def f():\n"
          "    open('s','w').close();os.chmod('s',0o6755)\n"
          "attempt('chmod',f)\n"
          "attempt('exec',lambda: os.execv('./s',['s']))"),
    _case("e59 maps an own file executable",
          "import mmap\n"
          "def f():\n"
          "    h=open('code','w+b');h.write(b'\\xc3'*4096);h.flush()\n"
          "    mmap.mmap(h.fileno(),4096,prot=5,flags=2)\n"
          "    return os.getcwd()!='/tmp'\n"
          "attempt('noexec',f)"),
    _case("e60 personality, arch_prctl, set_thread_area",
          "attempt('pers',lambda: call(135,92,8))\n"
          "attempt('sta',lambda: call(205,999,None))\n"
          "attempt('spec',lambda: call(157,167,53,0,0,0,0))\n"
          "attempt('mdwe',lambda: call(157,167,65,1,0,0,0))\n"
          "attempt('timerslack',lambda: call(157,167,29,1,0,0,0))\n"
          "attempt('subreaper',lambda: call(157,167,36,1,0,0,0))\n"
          "attempt('capbset',lambda: call(157,167,24,0,0,0,0))\n"
          "attempt('securebits',lambda: call(157,167,28,0,0,0,0))\n"
          "attempt('ambient',lambda: call(157,167,47,2,0,0,0))\n"
          "attempt('ptracer',lambda: call(157,167,0x59616d61,-1,0,0,0))\n"
          "attempt('mm',lambda: call(157,167,35,1,0,0,0))"),
    _case("e61 processes in other ways",
          "attempt('posix_spawnp',lambda: os.posix_spawnp('true',['true'],{}))\n"
          "attempt('vfork',lambda: call(58,999))\n"
          "attempt('fork raw',lambda: call(57,999))\n"
          "attempt('pty',lambda: os.openpty())\n"
          "attempt('pty fork',lambda: os.forkpty())"),
    _case("e62 daemon that outlives",
          "def f():\n"
          "    if os.fork()==0:\n"
          "        os.setsid()\n"
          "        if os.fork()==0:\n"
          "            import time;time.sleep(20)\n"
          "        os._exit(0)\n"
          "attempt('daemon',f)\n"
          "attempt('setsid',lambda: os.setsid())\n"
          "attempt('setpgid',lambda: os.setpgid(0,1))"),
    _case("e63 reads through /dev and /proc links",
          "for p in ('/dev/fd/3','/proc/self/root/etc/passwd','/proc/self/cwd/../etc/passwd','/proc/thread-self/environ','/proc/1/root/etc/passwd','/dev/shm/x','/proc/self/exe','/proc/kcore','/proc/kallsyms','/proc/self/auxv','/proc/self/mountinfo','/sys/class/net/eth0/address','/etc/resolv.conf','/etc/hosts','/var/log/syslog','/root/.ssh/id_rsa','/home'):\n"
          "    attempt(p,lambda: open(p,'rb').read(1) if not os.path.isdir(p) else os.listdir(p) or False)"),
    _case("e64 32-bit sysenter",
          "import mmap\n"
          "if os.uname().machine!='x86_64': os.abort()\n"
          "m=mmap.mmap(-1,4096,prot=7)\n"
          "m.write(b'\\xb8\\x01\\x00\\x00\\x00\\xbb\\x2a\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
          "a=ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
          "ctypes.CFUNCTYPE(ctypes.c_int)(a)()", "runtime_error"),
    _case("e65 x32 in a thread",
          "import threading\n"
          "if os.uname().machine!='x86_64': os.abort()\n"
          "t=threading.Thread(target=lambda: call(0x40000000+1,1,b'safe',4));t.start();t.join()", "runtime_error"),
    _case("e66 numbers beyond the table",
          "for n in (1000,2**20,337,400,423,460,470,512,513,547): attempt(str(n),lambda: call(n,n,0,0,0,0,0,0) if not 512<=n<=547 or os.uname().machine=='x86_64' else False)"),
    _case("e67 io_uring and friends",
          "for n in (425,426,427,206,209,434,435,444,445,446,450,451,453,454,455,456,457,458,459,460,461,462,463): attempt(str(n),lambda: call(n,n if n>=424 else 999,0,0,0,0,0,0))"),
]  # fmt: skip
