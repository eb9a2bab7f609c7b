package main

import (
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestServeInitAsks answers the questions on a pseudo-terminal: some wrongly at first, and some with their default.
func TestServeInitAsks(t *testing.T) {
	d := newOperatorsDesk(t)
	person, program := openTerminal(t, 100)
	var sent testkit.Text
	go io.Copy(&sent, person) // ends with the terminal
	d.stdin, d.stderr = program, program
	d.terminal, d.columns = isTerminal, terminalColumns
	d.vars["TERM"] = "xterm"
	_, wait := d.started(t, "serve", "init", "--config", d.file("serve.toml"), "--globus-issuer", d.fabric.GlobusURL())
	answer := func(question, text string) {
		t.Helper()
		testkit.Eventually(t, question, func() bool { return strings.HasSuffix(sent.String(), question+": ") })
		sent.Reset()
		io.WriteString(person, text+"\n")
	}
	answer("URL of the ACL endpoint, such as https://diaspora.streams.example.org\r\n  --public-url", "http://diaspora.lab.test")
	answer("--public-url", "https://diaspora.lab.test")
	answer("--globus-client-id", "the service")
	answer("--globus-client-id", strings.ToUpper(globusdev.ResourceServerID))
	answer("--globus-login-client-id", globusdev.ResourceServerID)
	answer("--globus-login-client-id", globusdev.NativeClientID)
	answer("[none]\r\n  --verify-host", "other.test")
	answer("--verify-host", "")
	answer("--kafka-brokers", "kafka1.lab.test")
	answer("--kafka-brokers", "kafka1.lab.test:9094, kafka2.lab.test:9094")
	answer("[kafka1.lab.test:9092,kafka2.lab.test:9092]\r\n  --acl-bootstrap", "")
	answer("(it is not shown)", d.secret)
	if code := wait(); code != 0 {
		t.Fatalf("init exits with %d:\n%s", code, sent.String())
	}
	if strings.Contains(sent.String(), d.secret) {
		t.Error("the terminal shows the secret")
	}
	if got := string(testkit.ReadFile(t, d.file("globus-secret"))); got != d.secret+"\n" {
		t.Errorf("the file with the secret has %q", got)
	}
	text := string(testkit.ReadFile(t, d.file("serve.toml")))
	for _, want := range []string{
		"\npublic-url = \"https://diaspora.lab.test\"\n", "\nglobus-scope = \"https://auth.globus.org/scopes/" + globusdev.ResourceServerID + "/logging\"",
		"\nkafka-brokers = [\"kafka1.lab.test:9094\", \"kafka2.lab.test:9094\"]\n", "\nacl-bootstrap = [\"kafka1.lab.test:9092\", \"kafka2.lab.test:9092\"]\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the file does not have %q:\n%s", want, text)
		}
	}
	if !strings.HasSuffix(d.out.String(), "\ndiaspora login https://diaspora.lab.test\n") {
		t.Errorf("init prints\n%s", d.out.String())
	}
}

// TestServeInitAsksAgain checks that an error after the questions says how to repeat the command without them, and that
// the end of the input and Ctrl-C make no file.
func TestServeInitAsksAgain(t *testing.T) {
	d := newOperatorsDesk(t)
	line := d.line("--kafka-brokers", "", "--globus-client-secret-file", "")
	start := func(press string, at string) (int, string) {
		t.Helper()
		person, program := openTerminal(t, 100)
		var sent testkit.Text
		go io.Copy(&sent, person) // ends with the terminal
		d.stdin, d.stderr = program, program
		d.terminal = isTerminal
		stop, wait := d.started(t, line...)
		testkit.Eventually(t, "the first question", func() bool { return strings.HasSuffix(sent.String(), "--kafka-brokers: ") })
		if at == "brokers" {
			io.WriteString(person, press)
			code := wait()
			testkit.Eventually(t, "the error", func() bool { return strings.Contains(sent.String(), "serve init: ") })
			return code, sent.String()
		}
		io.WriteString(person, "127.0.0.1:2\n")
		testkit.Eventually(t, "the second question", func() bool { return strings.HasSuffix(sent.String(), "--acl-bootstrap: ") })
		io.WriteString(person, "\n")
		testkit.Eventually(t, "the question for the secret", func() bool { return strings.HasSuffix(sent.String(), "(it is not shown): ") })
		if state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO != 0 {
			t.Errorf("when init asks for the secret, the terminal echoes: %v", err)
		}
		if press == "Ctrl-C" {
			code := stop()
			if state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO == 0 {
				t.Errorf("after Ctrl-C, the terminal does not echo: %v", err)
			}
			io.WriteString(person, "\n") // ends the read that cannot be interrupted
			return code, sent.String()
		}
		io.WriteString(person, press)
		code := wait()
		testkit.Eventually(t, "the error", func() bool { return strings.Contains(sent.String(), "hint: ") })
		return code, sent.String()
	}
	code, said := start("wrong\n", "secret")
	if code != 3 || !strings.Contains(said, "does not accept the secret") {
		t.Errorf("with a wrong secret, init exits with %d:\n%s", code, said)
	}
	d2 := strings.ReplaceAll(said, "\r\n", "\n")
	if again := "to repeat with the same answers: diaspora serve init --config " + d.file("serve.toml"); !strings.Contains(d2, again) || !strings.Contains(d2, " --kafka-brokers 127.0.0.1:2") {
		t.Errorf("init does not say how to repeat it:\n%s", said)
	}
	if code, said := start("\x04", "brokers"); code != 2 || !strings.Contains(said, "the input ended before the answer to --kafka-brokers") { // Ctrl-D
		t.Errorf("after the end of the input, init exits with %d:\n%s", code, said)
	}
	if code, said := start("Ctrl-C", "secret"); code != 130 {
		t.Errorf("after Ctrl-C, init exits with %d:\n%s", code, said)
	}
	if made := d.files(t); len(made) != 0 {
		t.Errorf("init has made %q", made)
	}
}
