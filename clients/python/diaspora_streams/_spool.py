"""Logging through the command ``diaspora``, which keeps events in a spool on disk.

One child process, ``diaspora produce TOPIC``, gets each event as a line of JSON, and prints a
line for each event that is on disk. If the process dies, another one gets the events that
are not acknowledged. They keep their IDs, so an event that is logged twice can be told.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Mapping, Optional

from ._errors import Closed, DiasporaError, EventError, SpoolFull, Spooled, Unavailable, from_exit_code
from ._event import Encoded

Done = Callable[[Optional[DiasporaError]], None]

MAX_CRASHES = 3  # in a row, without an acknowledged event
FAILED_SECONDS = 1.0  # for how long an error is repeated before another process is started
MAX_WRITE_BYTES = 1 << 20
KILL_SECONDS = 5.0  # how long a process may take to end after SIGTERM
INTERRUPTED = 130  # the exit code after SIGTERM
SPOOLED = "in the spool"  # what an error says if events are pending there
MORE = "not logged; "  # what the error about events that were not logged says if there is more to say

diagnostics = logging.getLogger("diaspora_streams")


class Fallback(logging.Handler):
    """Prints messages of a module, with its name, that would be lost: the program has no handler, or only some that ignore them, as our Handler does."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: Optional[logging.Logger] = logging.getLogger(record.name)
        while logger is not None:
            for handler in logger.handlers:
                if handler is not self and record.levelno >= handler.level and not getattr(handler, "ignores_diagnostics", False):
                    return
            logger = logger.parent if logger.propagate else None
        if logging.lastResort is not None:
            text = f"{record.name}: {record.getMessage()}"
            logging.lastResort.handle(logging.makeLogRecord({**record.__dict__, "msg": text, "args": None}))


diagnostics.addHandler(Fallback())
starting = threading.Lock()  # a process that is forked while a pipe is made would keep the pipe open


def find_binary() -> Optional[str]:
    """Return the command ``diaspora``: that of this Python's environment, or else the one on PATH."""
    name = "diaspora.exe" if os.name == "nt" else "diaspora"
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), name)
    return beside if os.path.isfile(beside) and os.access(beside, os.X_OK) else shutil.which("diaspora")


def child_environment(environ: Optional[Mapping[str, str]]) -> dict[str, str]:
    """Return the environment of a child process. Secrets reach it in no other way."""
    if environ is None:
        return dict(os.environ)
    ours = ("DIASPORA_", "GLOBUS_SDK_")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **environ}


def explain(document: Mapping[str, Any]) -> DiasporaError:
    """Return the error that the command has printed as JSON."""
    hints = [h for h in document.get("hints") or () if isinstance(h, str)]
    code = document.get("exit_code")
    return from_exit_code(code if isinstance(code, int) else 1, "; ".join([str(document.get("error")), *hints]).replace("?; ", "? "))


class _Waiting:
    """An event without a result."""

    __slots__ = ("line", "done")

    def __init__(self, line: bytes, done: Done) -> None:
        self.line, self.done = line, done


class SpoolTransport:
    """Sends events to a child process. Threads may share it."""

    name = "spool"

    def __init__(self, binary: str, topic: str, environ: Optional[Mapping[str, str]], wait: float) -> None:
        self._command = [binary, "produce", "--input", "ndjson", "-o", "json", "--quiet", "--require-ack", "--wait", f"{wait:g}s", "--", topic]
        self._topic, self._environ = topic, child_environment(environ)
        self._changed = threading.Condition()  # guards the fields below
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._sent: dict[int, _Waiting] = {}  # by the number of the line
        self._lines = 0  # written to the current process
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._thread: Optional[threading.Thread] = None
        self._ready = threading.Event()  # the threads that a process needs have started, or it has failed
        self._exited = False
        self._closing = False
        self._crashes = 0
        self._failure: Optional[DiasporaError] = None
        self._failed_at = 0.0
        self._report: Optional[DiasporaError] = None  # the error that the process has ended with
        self._messages: Optional[Messages] = None

    def send(self, event: Encoded, done: Done) -> None:
        """Queue an event. done is called once, with None when the event is on disk."""
        line = event.line()
        with self._changed:
            if self._closing:
                raise Closed(f'log to topic "{self._topic}": the Logger is closed')
            if self._failure is not None and time.monotonic() - self._failed_at < FAILED_SECONDS:
                raise self._failure.with_traceback(None)
            self._queue.append(_Waiting(line, done))
            self._start()
            self._changed.notify_all()
        self._ready.wait()

    def open(self) -> None:
        with self._changed:
            self._start()
        self._ready.wait()  # from Python 3.12 on, a program that ends cannot start threads any more

    def _start(self) -> None:
        if self._thread is None:
            self._ready.clear()
            self._thread = threading.Thread(target=self._run, name="diaspora-spool", daemon=True)
            self._thread.start()

    def trouble(self) -> Optional[DiasporaError]:
        """Say why events may have to wait, if the process has said so."""
        text = self._messages.warning if self._messages is not None else ""
        if "spool is full" in text:
            return SpoolFull(text)
        return Unavailable(text) if text else None

    def close(self, timeout: float) -> str:
        """End the process once it has read all events. Return what is still pending, or ""."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive() and self._process is not None:
                terminate(self._process)
                thread.join(KILL_SECONDS)
        report = self._report
        if thread is None or report is None:
            return ""
        if isinstance(report, EventError) and MORE not in str(report):
            return ""  # callers have been told of the events that were not logged
        if isinstance(report, Spooled) or isinstance(report, EventError) and SPOOLED in str(report):
            return str(report)
        raise report

    def abandon(self) -> None:
        """Forget the process, in a fork of the program that started it: its pipes would never be closed otherwise."""
        process = self._process
        if process is not None:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.returncode = 0  # it is the child of another process

    def _run(self) -> None:
        """Be the only thread that starts processes and writes to them."""
        while True:
            try:
                process = self._spawn()
            except OSError as e:
                return self._end(DiasporaError(f"start {self._command[0]}: {e.strerror}"))
            except RuntimeError as e:  # the program ends, and starts neither processes nor threads
                return self._end(DiasporaError(f"start {self._command[0]}: {e}"))
            receipts = threading.Thread(target=self._read_receipts, args=(process,), name="diaspora-spool", daemon=True)
            try:
                self._messages = Messages(process.stderr, self._refused)
                receipts.start()
            except RuntimeError as e:
                terminate(process)
                return self._end(DiasporaError(f"start {self._command[0]}: {e}"))
            self._ready.set()
            self._write(process)
            receipts.join()
            self._messages.join()
            code = process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
            self._report = self._messages.error
            if self._ended(code):
                return

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._changed:
            self._lines, self._exited, self._report = 0, False, None
            # What an earlier process has not acknowledged comes first, in its order.
            self._queue.extendleft(reversed(self._sent.values()))
            self._sent.clear()
        with starting:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environ,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the program, which then closes the Logger
            )
        return self._process

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while data := self._next():
                view = memoryview(data)
                while view:
                    view = view[process.stdin.write(view) :]
        except (BrokenPipeError, ConnectionError):
            pass  # it has died, and is replaced
        finally:
            process.stdin.close()

    def _next(self) -> bytes:
        """Wait for events, and return their lines, or nothing if the process is to end or has ended."""
        with self._changed:
            while not self._queue and not self._closing and not self._exited:
                self._changed.wait()
            lines: list[bytes] = []
            size = 0
            while self._queue and size < MAX_WRITE_BYTES and not self._exited:
                waiting = self._queue.popleft()
                self._lines += 1
                self._sent[self._lines] = waiting
                lines.append(waiting.line)
                size += len(waiting.line)
            return b"".join(lines)

    def _read_receipts(self, process: subprocess.Popen[bytes]) -> None:
        for document in _lines(process.stdout):
            if isinstance(document, dict):
                self._result(document.get("line"), None)
        with self._changed:
            self._exited = True
            self._changed.notify_all()

    def _refused(self, document: dict[str, Any]) -> None:
        error = explain(document)
        error.of_event = True
        self._result(document["line"], error)

    def _result(self, line: Any, error: Optional[DiasporaError]) -> None:
        with self._changed:
            waiting = self._sent.pop(line, None)
            self._crashes = 0
        if waiting is not None:
            waiting.done(error)

    def _ended(self, code: int) -> bool:
        """Decide what follows the end of a process. Return whether the thread ends, too."""
        with self._changed:
            left = len(self._queue) + len(self._sent)
            if self._closing and not left:
                if code < 0 or code == INTERRUPTED:
                    self._report = Spooled(f"diaspora produce was ended ({how(code)}) before the cluster had acknowledged all events; the rest is in the spool")
                return True
            self._crashes += 1
            crashes = self._crashes
        killed = code < 0 or code == INTERRUPTED or self._report is None
        if killed and crashes <= MAX_CRASHES:
            diagnostics.warning("diaspora produce ended (%s); it is started again", how(code))
            return False
        error = self._report
        if error is None or killed:
            error = DiasporaError(f"diaspora produce ended {crashes} times in a row ({how(code)})")
        self._end(error)
        return True

    def _end(self, error: DiasporaError) -> None:
        """Fail all events that have no result, and end the thread. The next event starts another one."""
        with self._changed:
            left = [*self._sent.values(), *self._queue]
            self._sent.clear()
            self._queue.clear()
            self._failure, self._failed_at, self._crashes = error, time.monotonic(), 0
            self._thread = self._report = None
        self._ready.set()
        diagnostics.warning("%s", error)
        for waiting in left:
            waiting.done(error)


class Messages:
    """Reads what a process prints on stderr, in a thread of its own."""

    def __init__(self, pipe: Any, line_failed: Callable[[dict[str, Any]], None] = lambda document: None) -> None:
        self.error: Optional[DiasporaError] = None  # with which the process ends
        self.warning = ""  # the last one, if it still applies
        self._line_failed = line_failed
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="diaspora-messages", daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        for document in _lines(pipe):
            if isinstance(document, str):
                text = document.removeprefix("diaspora: ").strip()
                diagnostics.warning("%s", text)
                hint = text.removeprefix("hint: ")
                self.warning = "" if text == "the spool has room again" else text if hint == text else f"{self.warning}; {hint}"
            elif "line" in document:
                self._line_failed(document)
            elif "error" in document:
                self.error = explain(document)

    def join(self) -> None:
        self._thread.join()


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process, if need be by force."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lines(pipe: Any) -> Any:
    """Yield the lines of a pipe: parsed if they are JSON objects, and otherwise as text."""
    buffer = b""
    while data := os.read(pipe.fileno(), 1 << 16):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line) if line.startswith(b"{") else line.decode("utf-8", "replace")
            except ValueError:
                yield line.decode("utf-8", "replace")


def how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
