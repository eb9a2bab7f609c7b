"""Token files: who may read them, how they are written, and whose turn it is."""

import os
import stat
import subprocess
import sys
import tempfile
import time
import unittest

from diaspora_streams import InsecureFile, LoginRequired, Token, Unavailable
from diaspora_streams._store import Damaged, TokenFile, format_time, parse_time, set_token, token_of

SERVER = "a-resource-server"


def a_token(**changes):
    fields = dict(access_token="dev-access", refresh_token="dev-refresh", resource_server=SERVER, scope="s", expiry=2e9, obtained=1e9)
    return Token(**dict(fields, **changes))


def content_with(token):
    content = {"version": 1, "identity": {}, "tokens": {}}
    set_token(content, token)
    return content


class StoreTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = TokenFile(os.path.join(folder.name, "login.json"))

    def test_what_is_written_is_read(self):
        token = a_token(expiry=1795550592.25)
        self.file.write(content_with(token))
        self.assertEqual(token_of(self.file.read(), SERVER), token)
        self.assertEqual(stat.S_IMODE(os.stat(self.file.path).st_mode), 0o600)
        self.assertEqual(os.listdir(os.path.dirname(self.file.path)), ["login.json"])

    def test_what_another_version_adds_is_kept(self):
        self.file.write(dict(content_with(a_token()), more="x"))
        self.assertEqual(self.file.read()["more"], "x")

    def test_a_failed_write_leaves_the_old_file(self):
        self.file.write(content_with(a_token()))
        with self.assertRaises(TypeError):
            self.file.write(dict(content_with(a_token(access_token="other")), bad=object()))
        self.assertEqual(token_of(self.file.read(), SERVER), a_token())
        self.assertEqual(os.listdir(os.path.dirname(self.file.path)), ["login.json"])

    def test_others_may_not_read(self):
        self.file.write(content_with(a_token()))
        os.chmod(self.file.path, 0o640)
        with self.assertRaisesRegex(InsecureFile, "chmod 600"):
            self.file.read()

    def test_others_may_not_write_the_folder(self):
        self.file.write(content_with(a_token()))
        os.chmod(os.path.dirname(self.file.path), 0o770)
        with self.assertRaisesRegex(InsecureFile, "chmod 700"):
            self.file.read()
        with self.assertRaises(InsecureFile):
            self.file.write(content_with(a_token()))

    def test_nothing_and_nonsense(self):
        with self.assertRaises(LoginRequired):
            self.file.read()
        for nonsense in ("", "{", "[]", '{"version":1,"tokens":3}', "x" * (1 << 21)):
            with open(self.file.path, "w") as f:
                f.write(nonsense)
            os.chmod(self.file.path, 0o600)
            with self.assertRaises(Damaged):
                self.file.read()

    def test_the_lock_is_exclusive_and_ends_with_its_process(self):
        hold = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f,fcntl.LOCK_EX); print(1,flush=True); sys.stdin.read()"
        other = subprocess.Popen(
            [sys.executable, "-c", hold, self.file.path + ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with other:
            other.stdout.readline()
            with self.assertRaises(Unavailable):
                with self.file.lock(time.monotonic()):
                    self.fail("somebody else holds the lock")
            other.kill()
            other.wait()
            with self.file.lock(time.monotonic() + 30):
                pass

    def test_where_nothing_can_be_written_there_is_no_turn_to_take(self):
        with TokenFile("/nonexistent/login.json").lock(time.monotonic()):
            pass

    def test_tokens_do_not_print(self):
        for text in (repr(a_token()), str(a_token()), f"{a_token()}", "%s" % [a_token()]):
            self.assertNotIn("dev-", text)

    def test_times_as_go_writes_them(self):
        for text, want in {
            "1970-01-01T00:00:00Z": 0,
            "2026-11-24T20:03:21.123456789Z": 1795550601.123456789,
            "2026-11-24T22:03:21.5+02:00": 1795550601.5,
            "2026-11-24T15:33:21-04:30": 1795550601,
        }.items():
            self.assertAlmostEqual(parse_time(text), want, places=5, msg=text)
        self.assertLess(parse_time("0001-01-01T00:00:00Z"), 0)
        self.assertAlmostEqual(parse_time(format_time(1795550601.125)), 1795550601.125)
        for text in ("", "2026-11-24", "2026-11-24T20:03:21", "2026-13-24T20:03:21Z"):
            with self.assertRaises(ValueError, msg=text):
                parse_time(text)


if __name__ == "__main__":
    unittest.main()
