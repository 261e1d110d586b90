"""The program in a terminal of its own, as a person has it before them."""
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

from program import PROGRAM


class Terminal:
    """A program with a pseudo terminal of 24 x 100 characters. `shown` is all that it has written there."""

    def __init__(self, *args, env=None):
        self.shown, self.read_to, self.status = "", 0, None
        command = [PROGRAM, *map(str, args)]
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C", **(env or {})}
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(PROGRAM, command, environment)

    def send(self, text):
        os.write(self.file, text.encode() if isinstance(text, str) else text)

    def read(self, seconds):
        """Whether something came; at its end nothing does."""
        if not select.select([self.file], [], [], seconds)[0]:
            return False
        try:
            got = os.read(self.file, 65536)
        except OSError:
            got = b""
        self.shown += got.decode(errors="replace")
        return bool(got)

    def expect(self, *texts, seconds=60):
        """Waits until these are shown, in this order, behind what was waited for before; what was shown until then."""
        begin, end = self.read_to, time.monotonic() + seconds
        for text in texts:
            while self.shown.find(text, self.read_to) < 0:
                if not self.read(max(0, end - time.monotonic())):
                    raise AssertionError(f"{text!r} is not in {self.shown[self.read_to:]!r}")
            self.read_to = self.shown.find(text, self.read_to) + len(text)
        return self.shown[begin:self.read_to]

    def modes(self):
        """The terminal's local modes."""
        return termios.tcgetattr(self.file)[3]

    def ended(self, seconds=20):
        """Waits for the program's end; its exit status, negative for a signal."""
        end = time.monotonic() + seconds
        while self.status is None:
            if time.monotonic() > end:
                raise AssertionError(f"it goes on: {self.shown[-500:]!r}")
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                while self.read(0):
                    pass
        return self.status

    def close(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)
