"""A stand-in for the command ``diaspora``, whose behaviour a test chooses: STANDIN says what it does.

It appends what it gets to the file in STANDIN_LOG, one JSON object a line: its arguments, and each event.
"""

import json
import os
import signal
import sys

behaviour, log = os.environ["STANDIN"], open(os.environ["STANDIN_LOG"], "a", buffering=1)
print(json.dumps({"arguments": sys.argv[1:], "pid": os.getpid()}), file=log)


def fail(code, text):
    print(json.dumps({"error": text, "hints": ["do this"], "exit_code": code}), file=sys.stderr, flush=True)
    sys.exit(code)


if behaviour.startswith("exit "):
    fail(int(behaviour.split()[1]), "nothing was logged")
if behaviour == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
for number, line in enumerate(sys.stdin.buffer, 1):
    print(json.dumps({"event": json.loads(line), "pid": os.getpid()}), file=log)
    if behaviour == "silent":
        continue
    if behaviour == "full":
        print("diaspora: the spool is full: it has 1 GiB; 1 event is in it\nhint: free some space", file=sys.stderr, flush=True)
        behaviour = "silent"
        continue
    if behaviour == "crash once" and number == 3 and not os.path.exists(log.name + ".crashed"):
        open(log.name + ".crashed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if b"refuse" in line:
        print(json.dumps({"error": "too large", "hints": [], "exit_code": 2, "input": "input", "line": number}), file=sys.stderr, flush=True)
        continue
    print(json.dumps({"topic": "t", "id": json.loads(line)["id"], "line": number}), flush=True)
if behaviour == "linger":
    signal.signal(signal.SIGTERM, lambda *_: fail(130, "interrupted"))
    print(json.dumps({"lingers": True}), file=log)
    signal.pause()
if behaviour.startswith("end "):
    fail(int(behaviour.split()[1]), "2 events wait in the spool")
