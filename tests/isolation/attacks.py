"""What a hostile tenant tries from inside its container, and which lines of the profile stop it.

Invariant: an attack says `BROKEN` if and only if it succeeded. Each is run under the whole profile, where it fails, and
where its lines are missing, where it succeeds: an attack that never works proves nothing.
"""

from dataclasses import dataclass
from typing import Final

from tests.hostagent.namespaces import (
    CARRIER,
    GATEWAY,
    HOST,
    INTERNET,
    METADATA,
    NEIGHBOUR,
    RESERVED,
    RESOLVER,
)

DISK_MIB: Final = 48
MEMORY_MIB: Final = 160
HOST_SERVICE: Final = 9999
"""A service of the lent machine's, on all of its addresses."""
SECRET: Final = "spawn-isolation-secret"


@dataclass(frozen=True)
class Attack:
    """`script` is run by sh as the tenant's root. `without` are lines of `isolation`, or rules of `firewall`."""

    name: str
    script: str
    without: tuple[str, ...]


def connect(address: str, port: int) -> str:
    """Reach a TCP service; all that stand here say `reached`."""
    return (
        f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port} && head -c 7 <&3' 2>/dev/null | grep -q reached"
        " && echo BROKEN"
    )


def ask_udp(address: str, port: int) -> str:
    """Ask a UDP service for anything at all."""
    return (
        'perl -MIO::Socket::INET -e \'$s = IO::Socket::INET->new(Proto => "udp", '
        f'PeerAddr => "{address}:{port}") or exit; '
        '$s->send("\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1"); $SIG{ALRM} = sub { exit }; alarm 2; '
        '$s->recv($b, 512); print "BROKEN\\n" if length $b\''
    )


def call(number: int, *arguments: str) -> str:
    """Make a system call (x86-64 numbers); it succeeded if it did not answer -1."""
    words = ", ".join((str(number), *arguments))
    return f"perl -e '$r = syscall({words}); print \"BROKEN\\n\" if $r != -1'"


FLOODS: Final = 4300
FLOOD: Final = (
    f"perl -MIO::Socket::INET -e 'for (1..{FLOODS}) {{ "
    f'$s = IO::Socket::INET->new(Proto => "udp", PeerAddr => "{RESOLVER}:53") or die $!; push @open, $s; '
    '$s->send("\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1"); $r = ""; vec($r, fileno $s, 1) = 1; '
    "if (select $r, undef, undef, 1) { $s->recv($b, 512); $n++; $lost = 0 } else { last if ++$lost == 3 } } "
    "print $n'"
)
"""Ask for a name from so many ports, all open together; says how often there was an answer."""

RESOURCES: Final = (
    Attack("memory bomb", f'perl -e \'$x = "a" x ({2 * MEMORY_MIB} << 20); print "BROKEN\\n"\'', ("memory",)),
    Attack(
        "fork bomb",
        "perl -e 'for (1..600) { $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } push @p, $p } "
        'print "BROKEN\\n" if @p == 600; kill 9, @p; wait for @p\'',
        ("processes",),
    ),
    Attack(
        "thread of zombies",
        "for i in $(seq 20); do (sh -c 'exit 0 &'); done; "
        "for i in $(seq 15); do grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l > /tmp/z; "
        "[ $(cat /tmp/z) -lt 20 ] && break; sleep 0.1; done; [ $(cat /tmp/z) -ge 20 ] && echo BROKEN",
        ("init",),
    ),
    Attack(
        "more cpu than rented",
        # A third of a second, and never told to wait: only who has the whole core gets that.
        "perl -e 'while ((times)[0] < 0.3) {}'; "
        "awk '/nr_throttled/ && $2 == 0 {print \"BROKEN\"}' /sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat "
        "2>/dev/null",
        ("cpu",),
    ),
    Attack(
        "disk bomb at home",
        f"head -c {2 * DISK_MIB}M /dev/zero > /root/bomb 2>/dev/null && echo BROKEN; rm -f /root/bomb",
        ("disk", "volume"),
    ),
    Attack(
        "disk bomb beside the disk",
        f"head -c {2 * DISK_MIB}M /dev/zero > /opt/bomb 2>/dev/null && echo BROKEN; rm -f /opt/bomb",
        ("disk",),
    ),
    Attack(
        "disk bomb in the list of hosts",
        # Docker's own file on the host, which is in no quota; its root is tried again without one in `from_outside`.
        f"head -c {2 * DISK_MIB}M /dev/zero 2>/dev/null >> /etc/hosts && echo BROKEN; : 2>/dev/null > /etc/hosts; true",
        ("disk", "file size"),
    ),
    Attack(
        "inode bomb",
        'mkdir /root/i; perl -e \'for (1..14000) { open(F, ">", "/root/i/$_") or exit; close F } print "BROKEN\\n"\'; '
        "rm -rf /root/i",
        ("disk", "volume"),
    ),
    Attack(
        "open files",
        'perl -e \'for (1..17000) { open($f[$_], "<", "/dev/null") or exit } print "BROKEN\\n"\'',
        ("files",),
    ),
    Attack("core dumps", "bash -c 'ulimit -c unlimited' 2>/dev/null && echo BROKEN", ("files",)),
)

NETWORK: Final = (
    Attack(
        "the gateway's services",
        "export gw=$(ip route | awk '/default/ {print $3}'); " + connect("$gw", HOST_SERVICE),
        ("host",),
    ),
    Attack("the host's services by its LAN address", connect(HOST, HOST_SERVICE), ("host",)),
    Attack("the host's services by UDP", ask_udp(HOST, HOST_SERVICE), ("host",)),
    Attack("the owner's router", connect(GATEWAY, 80), ("lan",)),
    Attack("the owner's other machine", connect(NEIGHBOUR, 445), ("lan",)),
    Attack("the owner's other machine by UDP", ask_udp(NEIGHBOUR, 5353), ("lan",)),
    Attack("another port of the resolver", connect("192.168.77.53", 22), ("lan",)),
    Attack("the cloud's metadata", connect(METADATA, 80), ("link-local",)),
    Attack("the carrier's network", connect(CARRIER, 80), ("carrier",)),
    Attack("an address that is nobody's", connect(RESERVED, 80), ("not unicast",)),
    Attack("mail", connect(INTERNET, 25), ("mail",)),
    Attack("mail over TLS", connect(INTERNET, 465), ("mail",)),
    Attack("mail submission", connect(INTERNET, 587), ("mail",)),
)

PRIVILEGES: Final = (
    Attack(
        "raw packets",
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_RAW, 1) and print \"BROKEN\\n\"'",
        ("capabilities",),
    ),
    Attack("packets of any kind", "perl -e 'socket(S, 17, 3, 8) and print \"BROKEN\\n\"'", ("capabilities",)),
    Attack("a device file", "mknod /tmp/disk b 254 0 2>/dev/null && echo BROKEN; rm -f /tmp/disk", ("capabilities",)),
    Attack(
        "capabilities on a file",
        # cap_net_admin+ep, as setcap would write it (linux/capability.h, VFS_CAP_REVISION_2).
        "cp /bin/true /root/true; perl -e '($f, $n) = (\"/root/true\", \"security.capability\"); "
        "$v = pack(\"V5\", 0x02000001, 1 << 12, 0, 0, 0); "
        '$r = syscall(188, $f, $n, $v, length $v, 0); print "BROKEN\\n" if $r == 0\'',
        ("capabilities",),
    ),
    Attack(
        "another user's process",
        # CAP_SYS_PTRACE is in none of Docker's sets; whoever is privileged reads anybody's memory.
        "setpriv --reuid 65534 sleep 5 & sleep 0.2; head -c 1 /proc/$!/environ >/dev/null 2>&1 && echo BROKEN; kill %1",
        ("unprivileged",),
    ),
    Attack(
        "a set-user-id program",
        "perl -e '$p = fork; if (!$p) { $> = $< = 65534; ($>, $<) = (65534, 65534); exec \"su\" } "
        'for (1..50) { select undef, undef, undef, 0.1; open(F, "/proc/$p/status") or last; local $/; $_ = <F>; '
        'next unless /^Name:\\tsu$/m; print "BROKEN\\n" if /^Uid:\\t65534\\t0/m; last } kill 9, $p; wait\' 2>/dev/null',
        ("no-new-privileges",),
    ),
    Attack("root of a new user namespace", call(272, "0x10000000"), ("seccomp",)),
    Attack("keyrings of the kernel", call(250, "0", "-3", "1"), ("seccomp",)),
    Attack("pages served by a program", call(323, "1"), ("seccomp",)),
    Attack("a mount", "mount -t tmpfs none /mnt 2>/dev/null && echo BROKEN; umount /mnt 2>/dev/null",
           ("unprivileged",)),
    Attack(
        "remounting the root to write",
        "mount -o remount,rw / 2>/dev/null && touch /broken 2>/dev/null && echo BROKEN",
        ("unprivileged",),
    ),
    Attack(
        "the host's disk",
        "for d in /sys/class/block/*/dev; do n=spawn-$(basename $(dirname $d)); IFS=: read a i < $d; "
        "mknod /dev/$n b $a $i 2>/dev/null; [ \"$(head -c 512 /dev/$n 2>/dev/null | wc -c)\" = 512 ] && echo BROKEN; "
        "rm -f /dev/$n; done; true",
        ("unprivileged",),
    ),
    Attack("another address", "ip address add 192.0.2.7/32 dev eth0 2>/dev/null && echo BROKEN", ("unprivileged",)),
    Attack("the host's processes", "grep -qx dockerd /proc/[0-9]*/comm 2>/dev/null && echo BROKEN", ("namespaces",)),
    Attack("the host's shared memory", f"[ -e /dev/shm/{SECRET} ] && echo BROKEN", ("namespaces",)),
    Attack(
        "the host's control groups",
        "grep -q docker /proc/self/cgroup && echo BROKEN",
        ("namespaces",),
    ),
    Attack("the host's interfaces", "[ -e /proc/sys/net/ipv4/conf/up0 ] && echo BROKEN", ("network", "ports")),
    Attack("the host's loopback", connect("127.0.0.1", HOST_SERVICE), ("network", "ports")),
    Attack(
        "Docker's socket",
        "for s in /var/run/docker.sock /run/docker.sock /host/docker.sock; do "
        "curl -sS -m 3 --unix-socket $s http://docker/_ping 2>/dev/null | grep -q OK && echo BROKEN; done; true",
        ("volume",),
    ),
    Attack(
        "a setting of the kernel",
        "mount -o remount,bind,rw /proc/sys 2>/dev/null; f=/proc/sys/vm/swappiness; "
        "v=$(cat $f); echo $v > $f && echo BROKEN",
        ("unprivileged",),
    ),
    Attack(
        "the kernel's log",
        "mknod /dev/spawn-log c 1 11; "
        "[ \"$(dd if=/dev/spawn-log bs=8192 count=1 2>/dev/null | wc -c)\" -gt 0 ] && echo BROKEN; "
        "rm -f /dev/spawn-log",
        ("unprivileged",),
    ),
    Attack(
        "settings of devices",
        "mount -o remount,rw /sys 2>/dev/null; f=$(ls /sys/block/*/queue/nr_requests | head -1); "
        "v=$(cat $f); echo $v > $f && echo BROKEN",
        ("unprivileged",),
    ),
    Attack(
        "its own limits",
        "for f in /sys/fs/cgroup/memory/memory.soft_limit_in_bytes /sys/fs/cgroup/memory.high; "
        "do [ -e $f ] || continue; "
        "mount -o remount,bind,rw $(dirname $f) 2>/dev/null; v=$(cat $f); echo $v > $f && echo BROKEN; done; true",
        ("unprivileged",),
    ),
)  # fmt: skip

ATTACKS: Final = (*RESOURCES, *NETWORK, *PRIVILEGES)
