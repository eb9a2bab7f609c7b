"""Requests to an ACL endpoint, which may be anybody's."""

import http.server
import threading
import unittest
import unittest.mock

from case import OF_HOST, TOKEN, Case, discovery, local
from diaspora_logger import _endpoint
from diaspora_streams import DiasporaError, LoginRequired, Unavailable, Untrusted, from_env


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.answer = [], (200, {}, b"")
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.seen.append((self.command, self.path, body, self.headers["Authorization"], self.headers["Content-Type"]))
        status, headers, data = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        pass


class EndpointTest(Case):
    def setUp(self):
        super().setUp()
        self.server = Server()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.store(local(), url=self.server.url)

    def request(self, **more):
        return _endpoint.request(from_env(), TOKEN, "claim", "/acl", **more)

    def test_a_form_a_document_and_neither(self):
        self.request(form={"topic": "a b"})
        self.request(document={"name": "x"})
        self.request()
        bearer = "Bearer " + TOKEN.access_token
        self.assertEqual(
            self.server.seen,
            [
                ("POST", "/acl", "topic=a+b", bearer, "application/x-www-form-urlencoded"),
                ("POST", "/acl", '{"name": "x"}', bearer, "application/json"),
                ("GET", "/acl", "", bearer, None),
            ],
        )

    def test_an_answer_does_not_command_the_terminal(self):
        self.server.answer = (200, {}, "a\n\x1b]0;owned\x07\u202eb".encode())
        self.assertEqual(self.request(), "a\n\ufffd]0;owned\ufffd\ufffdb")

    def test_refusals_say_what_the_endpoint_says(self):
        problem = b'{"title": "conflict", "detail": "somebody else owns it", "hint": "take another name"}'
        for status, data, error, says in (
            (409, problem, DiasporaError, "^claim: conflict: somebody else owns it: take another name$"),
            (401, problem, LoginRequired, "^claim: conflict"),
            (503, b"<html>", Unavailable, "^claim: the ACL endpoint answers status 503$"),
            (404, b"[]", DiasporaError, "^claim: the ACL endpoint answers status 404$"),
        ):
            self.server.answer = (status, {}, data)
            with self.assertRaisesRegex(error, says) as raised:
                self.request()
            self.assertIs(type(raised.exception), error)

    def test_a_redirect_takes_the_token_nowhere(self):
        self.server.answer = (307, {"Location": self.server.url + "/elsewhere"}, b"")
        with self.assertRaisesRegex(DiasporaError, "status 307"):
            self.request()
        self.assertEqual(len(self.server.seen), 1)

    def test_an_answer_has_a_limit(self):
        self.server.answer = (200, {}, b"x" * 11)
        with unittest.mock.patch("diaspora_logger._endpoint.MAX_ANSWER_BYTES", 10):
            with self.assertRaisesRegex(Unavailable, "too large"):
                self.request()

    def test_nobody_answers(self):
        self.server.shutdown()
        self.server.server_close()
        with self.assertRaisesRegex(Unavailable, "^claim: Connection refused"):
            self.request()

    def test_an_endpoint_that_is_not_the_fabrics_gets_no_token(self):
        # On this machine, with a fabric that is elsewhere.
        self.store(discovery(globus={"scope": OF_HOST}), url=self.server.url)
        with self.assertRaisesRegex(Untrusted, "127.0.0.1 is not below example.org"):
            self.request()
        self.assertEqual(self.server.seen, [])


if __name__ == "__main__":
    unittest.main()
