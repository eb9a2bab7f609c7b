package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/watch"
)

// input is what produce reads: a sequence of streams, or values from the command line.
type input struct {
	streams  []stream
	terminal bool // one of the streams is a terminal
	source   source
}

type stream struct {
	name   string // for errors
	reader io.Reader
	whole  bool     // the stream is one event
	file   *os.File // nil if the stream is not a file, or stdin
}

// openInput opens all files, so that one that cannot be opened is an error before the first event is sent.
func (e *env) openInput(o produceOptions, files []string) (*input, error) {
	in, whole := new(input), o.input == "file"
	switch {
	case len(o.values) > 0 && len(files) > 0:
		return nil, misuse("", "produce: --value and files exclude each other")
	case len(o.values) > 0:
		for _, v := range o.values {
			in.streams = append(in.streams, stream{name: "--value", reader: strings.NewReader(v), whole: true})
		}
		return in, nil
	case len(files) == 0:
		files = []string{"-"}
	}
	for _, name := range files {
		if name == "-" {
			in.streams = append(in.streams, stream{"input", e.stdin, whole, nil})
			in.terminal = in.terminal || e.terminal(e.stdin)
			continue
		}
		f, err := os.Open(name)
		if err == nil {
			in.streams = append(in.streams, stream{name, f, whole, f})
			var info os.FileInfo
			if info, err = f.Stat(); err == nil && info.IsDir() {
				err = errors.New("it is a directory")
			}
		}
		if err != nil {
			in.Close()
			return nil, misuse("", "produce: read %s: %v; nothing was sent", name, innermost(err))
		}
	}
	return in, nil
}

// innermost returns the cause of an error without the name of a file or of a system call, for texts that name the file
// themselves.
func innermost(err error) error {
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		return cause.Err
	}
	if cause := (*os.SyscallError)(nil); errors.As(err, &cause) {
		return cause.Err
	}
	return err
}

// Close closes the files.
func (in *input) Close() error {
	for _, s := range in.streams {
		if s.file != nil {
			s.file.Close()
		}
	}
	return nil
}

// each calls do with each line, or with the content of each stream and its file's FileInfo, until do returns false,
// the input ends, or reading fails. err says why a line cannot be an event. do may keep the content. each calls pause
// before anything that may take long, such as waiting for more input, and at the end.
func (in *input) each(do func(where string, number int, file fs.FileInfo, content []byte, err error) bool, pause func()) error {
	defer in.source.end()
	defer pause()
	for _, s := range in.streams {
		from := pausingReader{in.source.begin(s.name, s.reader), pause}
		if s.whole {
			var info fs.FileInfo
			var content []byte
			var err error
			if s.file != nil {
				info, err = s.file.Stat()
			}
			if err == nil {
				content, err = io.ReadAll(io.LimitReader(from, watch.MaxLineBytes+1)) // what is too large is not read to its end
			}
			if err != nil {
				return fmt.Errorf("produce: read %s: %w", s.name, err)
			}
			if len(content) > watch.MaxLineBytes {
				content, err = nil, fmt.Errorf("it has more than %d bytes, which is the most that an event may have", watch.MaxLineBytes)
			}
			if !do(s.name, 0, info, content, err) {
				return nil
			}
			continue
		}
		lines := watch.NewLineReader(from, watch.MaxLineBytes)
		for {
			line, err := lines.Next()
			var bad *watch.LineError
			if errors.As(err, &bad) {
				err = bad.Err
			} else if err == io.EOF {
				break
			} else if err != nil {
				return fmt.Errorf("produce: read %s after line %d: %w", s.name, lines.Line, err)
			}
			if !do(s.name, lines.Line, nil, line, err) {
				return nil
			}
		}
	}
	return nil
}

// pausingReader calls pause before each read.
type pausingReader struct {
	io.Reader
	pause func()
}

func (r pausingReader) Read(p []byte) (int, error) {
	r.pause()
	return r.Reader.Read(p)
}
